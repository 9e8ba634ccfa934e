"""What every method is given and what it hands back."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor, nn

from benchmarks.peers.protocol import Attempt, Request
from compressor.budget import parse_budget
from compressor.errors import UsageError
from compressor.network.counting import Count, count
from compressor.network.data import as_inputs
from compressor.score.judge import top1


@dataclass(frozen=True)
class Task:
    """A network and the images that a method may see; the test set is not among them.

    Attributes:
        model: the original, in evaluation mode; methods work on copies.
        example: inputs `[1, …]`.
        calibration: batches of inputs without labels.
        search: batches of (inputs, labels); they alone decide a search.
        target: share of the MAdds to reach, 0..1.
        size: MAdds and parameters of the original.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    calibration: Sequence[Tensor]
    search: Sequence[tuple[Tensor, Tensor]]
    target: float
    size: Count

    def share(self, model: nn.Module) -> float:
        """MAdds as a share of the original's; the one counter for all methods."""
        return count(model, self.example).madds / self.size.madds


@dataclass(frozen=True)
class Effort:
    """What it took: wall clock, processor time, and the process's peak of memory at its end."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


class Meter:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Effort:
        """The effort so far."""
        return Effort(time.perf_counter() - self._wall, time.process_time() - self._cpu, peak_mib())


def peak_mib() -> float:
    """Most memory that this process ever had."""
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@dataclass(frozen=True)
class Product:
    """What a method made; see `Made` for the fields."""

    model: nn.Module
    effort: Effort
    score_calls: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()


def load_task(module: ModuleType, budget: str) -> Task:
    """Reads a sample's network and images into memory, so that no method is timed reading them.

    Raises:
        UsageError: the budget is not one of MAdds: no other is held by every method.
    """
    wanted = parse_budget(budget)
    if wanted.unit != "madds":
        raise UsageError(f"the peers are compared at equal MAdds, but got the budget {budget!r}")
    model = module.build_model()
    example = as_inputs(module.example_input())
    size = count(model, example)
    return Task(
        model,
        example,
        [x if isinstance(x, Tensor) else x[0] for x in module.calibration_data()],
        list(module.validation_data()),
        wanted.limit(size.madds) / size.madds,
        size,
    )


def original(task: Task, request: Request) -> Product:
    """The network as it came: the first row of every table."""
    del request
    return Product(task.model, Meter().read())


class Scores:
    """Top-1 on the search images, which counts how often it was asked."""

    def __init__(self, search: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.calls = 0
        self._search = search

    def __call__(self, model: nn.Module) -> float:
        """Top-1, 0..1; higher is better."""
        self.calls += 1
        return top1(model, self._search)


Method = Callable[[Task, Request], Product]
