"""What a run found, as plain values in `result.json`. Knows no torch.

The file is documented in `docs/result.md`; `SCHEMA` grows whenever a key changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

from compressor.budget import UNITS, format_cost
from compressor.device.profile import Profile
from compressor.files import networks_within
from compressor.report.record import Form, Record
from compressor.space import Architecture, Choice, Frozen, SearchSpace

SCHEMA = 1
FILE_NAME = "result.json"
_SHOWN = 6  # folders in a message
Setting: TypeAlias = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True)
class Figures:
    """What one network costs and reaches; None where it was not measured.

    Attributes:
        madds: multiply-adds of one input.
        params: number of parameters.
        score: higher is better.
        latency_ms: median milliseconds of one ONNX Runtime call.
        file_bytes: size of the ONNX file.
    """

    madds: int
    params: int
    score: float | None = None
    latency_ms: float | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class FrontierPoint:
    """A scored network that no cheaper one beats; costs as in `Figures`."""

    architecture: Architecture
    madds: int
    params: int
    score: float
    latency_ms: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """What the search decided for one search layer.

    Attributes:
        name: the search layer's name.
        original: what the network had.
        chosen: what the compressed network has.
        modules: paths of the modules that change with it.
        madds: multiply-adds that the layer alone can take away, or None.
        options: every choice that there was, readable, in the order of an architecture's numbers.
    """

    name: str
    original: Choice
    chosen: Choice
    modules: tuple[str, ...] = ()
    madds: int | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class BudgetRow:
    """One limit as it was asked for, what it came to, and what the network has of it.

    Attributes:
        unit: a key of `compressor.budget.UNITS`; `limit` and `reached` are in its base.
        requested: the budget's text, for example `madds=50%`.
        limit: the most that was allowed.
        reached: the cost of the compressed network.
        low: the least that was allowed; None where there was none.
        upper: upper end of the 95 % interval of `reached`; None where that is exact.
    """

    unit: str
    requested: str
    limit: float
    reached: float
    low: float | None = None
    upper: float | None = None

    @property
    def met(self) -> bool:
        """Whether the network is within the limit, with the upper end where it was measured."""
        most = self.reached if self.upper is None else self.upper
        return most <= self.limit and (self.low is None or self.reached >= self.low)

    @property
    def allowed(self) -> str:
        """The limit for people: `20.3M`, or `18.1M to 20.3M`."""
        least = "" if self.low is None else f"{format_cost(self.unit, self.low)} to "
        return least + format_cost(self.unit, self.limit)


@dataclass(frozen=True)
class ScoredRow:
    """One evaluation in the order of the search; a failed one has no score.

    Attributes:
        order: position in the search, from 0.
        cost: cost in the unit of the first budget.
        score: higher is better, or None.
    """

    order: int
    cost: float
    score: float | None


@dataclass(frozen=True)
class DataRow:
    """Data that a run used.

    Attributes:
        use: what for: "calibration", "validation" or "training".
        batches: how many there are; None where a loader does not tell.
        inputs: how many inputs they hold together; None where they were not counted.
        shapes: of the tensors of one input, without the batch, for example `3x32x32`.
        targets: whether the first batch has targets; labels, for a classifier.
        sha256: over all inputs and targets, in order; empty where it was not taken.
        note: where the data came from, where that does not go without saying.
    """

    use: str
    batches: int | None
    inputs: int | None
    shapes: tuple[str, ...]
    targets: bool
    sha256: str = ""
    note: str = ""


@dataclass(frozen=True)
class RunSummary(Record):
    """Everything that a run's reader needs; the content of `result.json`.

    Attributes:
        base: the original network.
        best: the compressed network as exported.
        int8: the same network quantised; None where that was not asked for.
        architecture: option index of each search layer.
        choices: search layer to readable choice.
        widths: the decisions in forward order.
        budgets: promised and reached, in the order in which they were given.
        evaluations: networks scored, without failed ones.
        failed: networks that could not be scored.
        seconds: wall clock of the whole run.
        stages: wall clock of each stage in seconds.
        frozen: parts kept as they were, with the reason.
        sliced: modules whose weights could not be refitted, with the reason.
        unranked: search layers on which the ranking had nothing to go by, with the reason.
        frontier: scored networks that no cheaper one beats, cheapest first.
        scored: every evaluation in order.
        times: wall-clock seconds of each entry of `scored`; empty where that is not known.
        settings: what the run was asked for (seed, evaluations, target, ...).
        versions: library to version.
        machine: processor, threads, provider.
        data: what the network was calibrated, judged and trained with.
        profiles: where one call spends its time, of the original and of the compressed network.
        command: a shell line that repeats the run; empty where a program started it.
        schema: version of this form.
    """

    base: Figures
    best: Figures
    architecture: Architecture
    choices: Mapping[str, str]
    widths: tuple[LayerRow, ...]
    budgets: tuple[BudgetRow, ...]
    evaluations: int
    failed: int
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)
    frozen: tuple[Frozen, ...] = ()
    sliced: tuple[Frozen, ...] = ()
    unranked: tuple[Frozen, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    scored: tuple[ScoredRow, ...] = ()
    times: tuple[float, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str | int] = field(default_factory=dict)
    data: tuple[DataRow, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    int8: Figures | None = None
    command: str = ""
    schema: int = SCHEMA
    form: ClassVar[Form] = Form(FILE_NAME, "a result", SCHEMA, "`compressor compress` writes it")

    def check(self) -> None:
        """Budgets are of units that there are."""
        for row in self.budgets:
            if row.unit not in UNITS:
                raise ValueError(f"a budget is of {', '.join(UNITS)}, but got {row.unit!r:.80}")

    @classmethod
    def missing(cls, run: Path) -> str:
        """Names the folders of networks where the run is one for several."""
        return (
            f"a finished run holds {FILE_NAME}, but there is none in {str(run)!r}; {_remedy(run)}"
        )


def _remedy(run: Path) -> str:
    inner = networks_within(run)
    if not inner:
        return RunSummary.form.remedy
    return (
        f"it is a run for several networks: name the folder of one, {' or '.join(inner[:_SHOWN])}"
    )


def layer_rows(
    space: SearchSpace, architecture: Architecture, control: tuple[float, ...] | None = None
) -> tuple[LayerRow, ...]:
    """The decisions of an architecture beside the original.

    Args:
        space: the search layers.
        architecture: the compressed network.
        control: multiply-adds that each layer alone can take away (`cost.layer_control`).
    """
    amounts = [None] * len(space.layers) if control is None else [int(c) for c in control]
    return tuple(
        LayerRow(
            layer.name,
            layer.choices[-1],
            choice,
            layer.modules,
            amount,
            tuple(map(str, layer.choices)),
        )
        for (layer, choice), amount in zip(space.outcome(architecture), amounts, strict=True)
    )
