"""What the benchmark and its children tell each other, as JSON files. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from compressor.files import write_text
from compressor.plain import decode, encode

T = TypeVar("T")

ORIGINAL = "original"
_PLACES: Mapping[str, str] = {
    ORIGINAL: "task:original",
    "ours": "ours:make",
    "torch-pruning-uniform": "torchpruning:uniform",
    "torch-pruning-global": "torchpruning:over_all_layers",
    "fastnas": "fastnas:calibrated",
    "fastnas-large-batches": "fastnas:large_batches",
}
METHODS = tuple(name for name in _PLACES if name != ORIGINAL)
REQUEST, MADE, JUDGED = "request.json", "made.json", "judged.json"
MODULE, ONNX = "module.pt", "model.onnx"
TOLERANCE = 0.01  # the MAdds may differ from the target by this share of it


def place(method: str) -> tuple[str, str]:
    """Module and function of a method."""
    module, _, function = _PLACES[method].partition(":")
    return f"{__package__}.{module}", function


@dataclass(frozen=True)
class Request:
    """One row to be made.

    Attributes:
        sample: name of a file in `samples/`.
        method: one of `METHODS`, or `ORIGINAL`.
        budget: for example `madds=50%`.
        seed: of the method and of fine-tuning.
        finetune: epochs with the original as teacher; 0 skips it.
        evaluations: networks that ours may score.
        threads: of torch.
    """

    sample: str
    method: str
    budget: str
    seed: int = 0
    finetune: int = 0
    evaluations: int = 100
    threads: int = 1


@dataclass(frozen=True)
class Attempt:
    """What a method was asked for and what it gave, as shares of the original's MAdds."""

    requested: float
    reached: float
    seconds: float


@dataclass(frozen=True)
class Made:
    """What a method made, and what that took.

    Attributes:
        madds, params: of the network, counted by `compressor.network.counting`.
        madds_share, params_share: as shares of the original's.
        target: share of the MAdds that was asked for.
        seconds: wall clock from the original to the network, without reading data.
        cpu_seconds: processor time of the same stretch, all threads together.
        stages: parts of `seconds`, where the method tells them.
        memory_mib: peak of the child's memory while it compressed.
        memory_before_mib: peak before it started: Python, torch, the network and the images.
        score_calls: how often the method judged a network on the search images.
        attempts: one for each request until the MAdds were within `TOLERANCE`.
        load: the machine's load average before the start; above 1 it was busy with other things.
        notes: what a reader of the row must know.
    """

    madds: int
    params: int
    madds_share: float
    params_share: float
    target: float
    seconds: float
    cpu_seconds: float
    memory_mib: float
    memory_before_mib: float
    score_calls: int
    load: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def on_target(self) -> bool:
        """Whether the MAdds are close enough to be compared."""
        return within(self.madds_share, self.target)


@dataclass(frozen=True)
class Judged:
    """Top-1 in per cent on the full test set, which decided nothing.

    Attributes:
        returned: of the network as the method returned it.
        recalibrated: after BatchNorm statistics were taken anew on the calibration images.
        finetuned: after fine-tuning the recalibrated one; None where it was not asked for.
        finetune_seconds: wall clock of the fine-tuning.
    """

    returned: float
    recalibrated: float
    finetuned: float | None = None
    finetune_seconds: float | None = None


@dataclass(frozen=True)
class Timing:
    """ONNX Runtime, measured in turns with the original; intervals of 95 %."""

    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Row:
    """One method, budget and seed; what is None was not reached, and `reason` says why."""

    method: str
    budget: str
    seed: int
    made: Made | None = None
    judged: Judged | None = None
    timing: Timing | None = None
    reason: str = ""


def within(share: float, target: float) -> bool:
    """Whether MAdds are so close to the target that they can be compared."""
    return abs(share - target) <= TOLERANCE * target


def write(path: Path, value: object) -> None:
    """Writes a dataclass as JSON."""
    write_text(path, json.dumps(encode(value), indent=1) + "\n")


def read(kind: type[T], path: Path) -> T:
    """Inverse of `write`.

    Raises:
        OSError: there is no such file.
        ValueError: it holds something else.
    """
    return decode(kind, json.loads(path.read_text(encoding="utf-8")))
