"""Compress a trained PyTorch network to a budget and export verified ONNX.

```python
import compressor

result = compressor.compress(
    model, example_input, budget="madds=50%", calibration=batches, out="runs/mine"
)
result.model, result.frontier, result.onnx_path
```
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# As in compressor.device.agent, which is not always the first to import ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from compressor.deploy.artefacts import load
    from compressor.errors import CompressorError
    from compressor.foreign.reading import FileNetwork, read_file
    from compressor.multitask.pipeline import MultitaskResult, compress_multitask
    from compressor.multitask.task import Task
    from compressor.run.pipeline import Result, compress, export_run, inspect
    from compressor.trace.retrace import read_trace
    from compressor.trace.trace import Trace

_HOMES = {
    "CompressorError": "compressor.errors",
    "FileNetwork": "compressor.foreign.reading",
    "MultitaskResult": "compressor.multitask.pipeline",
    "Result": "compressor.run.pipeline",
    "Task": "compressor.multitask.task",
    "Trace": "compressor.trace.trace",
    "compress": "compressor.run.pipeline",
    "compress_multitask": "compressor.multitask.pipeline",
    "export_run": "compressor.run.pipeline",
    "inspect": "compressor.run.pipeline",
    "load": "compressor.deploy.artefacts",
    "read_file": "compressor.foreign.reading",
    "read_trace": "compressor.trace.retrace",
}

__all__ = [
    "CompressorError", "FileNetwork", "MultitaskResult", "Result", "Task", "Trace", "compress",
    "compress_multitask", "export_run", "inspect", "load", "read_file", "read_trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports torch only when something that needs it is asked for, not for `--help`."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
