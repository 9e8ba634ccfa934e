"""Every exception the project raises on purpose.

```
CompressorError                 exit code 1
├── UsageError                  exit code 2: what was asked cannot be meant
│   ├── TargetError             a target that is missing, does not import, or lacks a function
│   ├── BudgetError             a budget that cannot be read, or that asks for nothing
│   ├── DataError               batches that are empty, mis-shaped or of the wrong kind
│   └── RunError                a run directory that is missing, foreign, broken or not writable
├── AdapterError                the network cannot be read into search layers
├── ArchitectureError           an architecture that does not belong to its search space
├── InfeasibleError             the budget is below what the search layers can reach
├── SearchError                 the search could not score a single network
├── CheckError                  a checked promise does not hold (pruned = masked, ONNX = torch)
├── ExportError                 the ONNX file could not be written
├── MeasureError                ONNX Runtime could not load or run a model
├── DeviceError                 a device that cannot be reached, hangs, or gives nonsense
└── WorkerError                 workers that cannot be had, or that die of everything
```

Messages state the rule, then the values, then the layer, then the remedy.
"""


class CompressorError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(CompressorError):
    """The request itself is wrong; nothing was started and nothing was written."""

    exit_code = 2


class TargetError(UsageError):
    """A target that is missing, does not import, or lacks a function."""


class BudgetError(UsageError):
    """A budget that cannot be read, contradicts another, or asks for nothing."""


class DataError(UsageError):
    """Batches that are empty, mis-shaped or of the wrong kind."""


class RunError(UsageError):
    """A run directory that is missing, belongs to another run, is broken or not writable."""


class AdapterError(CompressorError):
    """The network cannot be read into search layers."""


class ArchitectureError(CompressorError):
    """An architecture that does not belong to its search space."""


class InfeasibleError(CompressorError):
    """The budget is below what the search layers can reach."""


class SearchError(CompressorError):
    """The search could not score a single network."""


class CheckError(CompressorError):
    """A promise was checked and does not hold."""


class ExportError(CompressorError):
    """The ONNX file could not be written."""


class MeasureError(CompressorError):
    """ONNX Runtime could not load or run a model."""


class DeviceError(CompressorError):
    """A device that cannot be reached, hangs, lacks what it needs, or gives nonsense."""


class WorkerError(CompressorError):
    """Workers cannot be had, cannot load what they are sent, or die of everything."""


def reason_of(error: BaseException) -> str:
    """The last line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
