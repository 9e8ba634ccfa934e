"""What a run was asked for, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from compressor.budget import Budget, parse_goals
from compressor.device.job import Device, Settings
from compressor.device.local import LocalDevice
from compressor.errors import DataError, UsageError
from compressor.names import KEEP
from compressor.network.counting import evaluating, forward
from compressor.network.data import (
    Batches,
    Inputs,
    as_inputs,
    device_of,
    divided,
    on,
    split,
)
from compressor.network.layout import LaidOut, suits
from compressor.network.passes import require_finite, watched
from compressor.refit.ranking import check_ranking
from compressor.report.result import DataRow
from compressor.score.evaluate import Score
from compressor.score.judge import Judge, make_judge


@dataclass(frozen=True)
class Options:
    """Settings of a run.

    Attributes:
        evaluations: networks to score at most.
        finetune: epochs for the network that was found.
        score_epochs: epochs for every network before it is scored.
        seed: of the search and of fine-tuning.
        adapter: registered name, or `package.module:Class`.
        threads: of ONNX Runtime, for every latency.
        provider: of ONNX Runtime.
        refit: whether the weights that read cut channels are refitted by least squares.
        ranking: which channels to keep first, a name of `compressor.refit.ranking.RANKINGS`.
        command: shell line that repeats the run, for the report; empty from Python.
        origin: where the network came from, for the report and `compressor export`.
        device: where every latency is measured.
        keep: which epoch of fine-tuning is kept, a name of `compressor.names.KEEP`.
        latency_folder: where the times of single operators are kept for other runs, or None.
        int8: whether the network is also delivered quantised; budgets of latency are then its.
        drop_blocks: whether residual blocks may be left out as a whole.
        workers: processes that score candidates; 1 scores them in this one.
        batch: networks that the search asks for at once; None is as many as there are workers.
        ray: address of the Ray cluster that the workers run on; None is this machine.
        worker_gpus: GPUs of each worker, or a share of one; None is one where the network is on
            a GPU, and else none.
    """

    evaluations: int = 100
    finetune: int = 0
    score_epochs: int = 0
    seed: int = 0
    adapter: str = "generic"
    threads: int = 1
    provider: str = "CPUExecutionProvider"
    refit: bool = True
    ranking: str = "reconstruction"
    command: str = ""
    origin: Mapping[str, str | None] = field(default_factory=dict)
    device: Device = field(default_factory=LocalDevice)
    int8: bool = False
    latency_folder: Path | None = None
    keep: str = "best"
    drop_blocks: bool = False
    workers: int = 1
    batch: int | None = None
    ray: str | None = None
    worker_gpus: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("evaluations", 1), ("finetune", 0), ("score_epochs", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        for name, count in (("workers", self.workers), ("batch", self.asked)):
            if count < 1:
                raise UsageError(f"{name} must be at least 1, but got {count}")
        if self.workers > 1 and self.asked == 1:
            raise UsageError(
                "with a batch of 1 each network is asked for when the one before is scored, which "
                f"leaves {self.workers} workers nothing to share; give --batch {self.workers}"
            )
        if self.worker_gpus is not None and not 0 <= self.worker_gpus < math.inf:
            raise UsageError(f"worker_gpus must be a number from 0, but got {self.worker_gpus}")
        check_ranking(self.ranking)
        if self.keep not in KEEP:
            raise UsageError(f"keep must be one of {', '.join(KEEP)}, but got {self.keep!r}")

    @property
    def asked(self) -> int:
        """Networks that the search asks for at once."""
        return self.workers if self.batch is None else self.batch

    @property
    def ranked_by(self) -> str:
        """The ranking that is used: nothing is reconstructed without refitting."""
        return "magnitude" if self.ranking == "reconstruction" and not self.refit else self.ranking


@dataclass(frozen=True)
class Request:
    """A network, its data and its budgets.

    Attributes:
        model: the original network; never touched.
        example: inputs `[N, …]`.
        budgets: limits that hold together.
        frontier: limits that hold in turn, each together with `budgets`; empty for one network.
        shared: whether `validation` is a part of the calibration data that was given.
        data: what the data holds; empty until it was read.
        calibration: batches for BatchNorm statistics and for comparing ONNX with torch.
        validation: batches that a `Judge` shows; None where the user's own score judges.
        training: batches for fine-tuning, or None.
        score: judges a network, higher is better; a `Judge`, or the user's own function.
        options: settings.
    """

    model: nn.Module
    example: Inputs
    budgets: tuple[Budget, ...]
    calibration: Batches
    validation: Batches | None
    training: Batches | None
    score: Score
    options: Options
    frontier: tuple[Budget, ...] = ()
    shared: bool = False
    data: tuple[DataRow, ...] = ()

    @property
    def goals(self) -> tuple[tuple[Budget, ...], ...]:
        """For each network that is asked for, what it must keep."""
        return tuple((own, *self.budgets) for own in self.frontier) or (self.budgets,)

    @property
    def units(self) -> frozenset[str]:
        """Units of everything that is limited."""
        return frozenset(budget.unit for goal in self.goals for budget in goal)

    @property
    def score_name(self) -> str:
        """A name of `compressor.names.SCORES`, or "own" for the user's own function."""
        return self.score.name if isinstance(self.score, Judge) else "own"


def make_request(
    model: nn.Module,
    example_input: Any,
    goals: tuple[Any, Any],
    calibration: Any,
    validation: Any,
    training: Any,
    score: Score | str | None,
    options: Options,
) -> Request:
    """Checks everything that can be checked without work.

    The goals are the texts of the budgets and of the frontier, of which one may be missing.

    Raises:
        UsageError: or one of its kinds, naming what was wrong.
        DeviceError: the device cannot be reached.
    """
    if not isinstance(model, nn.Module):
        raise DataError(f"the model must be a torch.nn.Module, but got {type(model).__name__}")
    options.device.check(Settings(options.threads, options.provider))
    example = on(device_of(model), as_inputs(example_input))
    budgets, frontier = parse_goals(*goals)
    if len(frontier) > options.evaluations:
        raise UsageError(
            "a frontier needs an evaluation for each of its budgets, but got "
            f"{len(frontier)} budgets and {options.evaluations} evaluations; allow more evaluations"
        )
    require_finite(model)
    calibrating = watched(calibration, "calibration data")
    own = callable(score)
    shared = not own and validation is None
    if shared:
        calibrating, validation = divided(calibrating)
    judged_on = None if own else watched(validation, "validation data")
    kept = None if training is None else watched(training, "training data", same=False)
    first = _try_batch(model, example, calibrating)
    if suits(model, first):
        calibrating = LaidOut(calibrating)
        judged_on = None if judged_on is None else LaidOut(judged_on)
        kept = None if kept is None else LaidOut(kept)
    judging = score if callable(score) else make_judge(score, judged_on or (), model)
    return Request(
        model, example, budgets, calibrating, judged_on, kept, judging, options, frontier, shared
    )


def _try_batch(model: nn.Module, example: Inputs, calibration: Batches) -> Inputs:
    """The first calibration batch; it and the example must fit the network, to begin with."""
    inputs = on(device_of(model), split(next(iter(calibration)))[0])
    with evaluating(model):
        forward(model, example)
        forward(model, inputs)
    _require_sizes(example, inputs)
    return inputs


class Stopwatch:
    """Wall-clock seconds of each stage, in order."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.stages: dict[str, float] = {}
        self._clock = clock
        self._start = clock()

    @property
    def seconds(self) -> float:
        """Since the stopwatch was made."""
        return self._clock() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the stage."""
        start = self._clock()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + self._clock() - start


def _require_sizes(example: Inputs, inputs: Inputs) -> None:
    """The file that is exported takes one size of input, with any batch."""
    wanted, got = ([list(t.shape[1:]) for t in some] for some in (example, inputs))
    if wanted != got:
        raise DataError(
            "calibration inputs must have the sizes of the example input, the batch aside, but the "
            f"example's are {wanted} and the calibration data's {got}; give an example input of "
            "the size that the network will be run with, and data of that size"
        )
