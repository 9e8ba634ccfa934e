"""The trace of a search as plain values: what stood where, what was dropped, what was taken.

Knows no torch. `compressor.plain.encode` makes JSON of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from compressor.search.notes import NamedLayer
from compressor.search.settings import SearchSettings
from compressor.space import Architecture
from compressor.trace.rows import Bucket, Counts, Step

Source: TypeAlias = Literal[
    "hints", "even", "random", "expected effects", "drawn effects", "gains of neighbours",
    "repeat", "layer", "set aside",
]  # fmt: skip
"""Where a network came from: the best by some view of the hints; the evenly filled network; drawn
at random; recombined from the effects that the model expects, from effects drawn from what it
believes, or from what the neighbours of the best network gained in a probe; scored once more; a
prefix of a visit of the published strategy; one of its completions at the end."""

Fate: TypeAlias = Literal[
    "kept", "beaten", "above a limit", "below a limit", "outside the band", "failed", "not scored"
]
"""What became of a prefix of the published strategy; `not scored` means that the evaluations were
spent."""


@dataclass(frozen=True)
class TracedLimit:
    """A limit in the unit's base.

    Attributes:
        unit: of the cost.
        high: the most.
        low: the least; None where there is none.
        measured: whether the cost has no table.
    """

    unit: str
    high: float
    low: float | None
    measured: bool


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        number: from 0, in the order of the search.
        architecture: the network.
        budget: place of the budget that it was made for, in `Trace.budgets`.
        source: where it came from.
        place: of the recombination or visit that it came from, or None.
        expected: of its score before it was known, by the model; None where there was none yet.
        deviation: standard deviation of that.
        score: None where the network failed.
        reason: why it failed, or empty.
        repeat: how often it had been scored before.
        images: after how many it was given up as clearly worse than the best; None where not.
            Its score is an estimate then.
        costs: unit to cost.
        keeps: places of the budgets that it keeps.
    """

    number: int
    architecture: Architecture
    budget: int
    source: Source
    place: int | None
    expected: float | None
    deviation: float | None
    score: float | None
    reason: str
    repeat: int
    images: int | None
    costs: Mapping[str, float]
    keeps: tuple[int, ...]


@dataclass(frozen=True)
class Recombination:
    """Guided: one recombination, layer by layer.

    Attributes:
        before: number of the evaluation that it was made for.
        budget: place of the budget under which it was made.
        source: whose effects were recombined.
        layers: how many prefixes each layer saw.
        proposed: networks that came out.
        inside: those within the exact limits and, where that can be had, in the band.
        new: those that had not been scored.
    """

    before: int
    budget: int
    source: Source
    layers: tuple[Counts, ...]
    proposed: int
    inside: int
    new: int


@dataclass(frozen=True)
class Tried:
    """Published: a prefix that was tried.

    Attributes:
        prefix: its options.
        fate: what became of it.
        score: of the network with the undecided layers at the original.
        cost: of that network, in `Trace.unit`.
        bucket: of that cost; None where each distinct cost has its own, or without a score.
        evaluation: number of the evaluation that scored this network; None where nothing did.
        known: whether that was before this visit, so that the prefix cost no evaluation.
        pushed_out: the prefix that had to leave the bucket for this one.
    """

    prefix: Architecture
    fate: Fate
    score: float | None = None
    cost: float | None = None
    bucket: int | None = None
    evaluation: int | None = None
    known: bool = False
    pushed_out: Architecture | None = None


@dataclass(frozen=True)
class Standing:
    """Published: a bucket of a row with its members, the best first.

    Attributes:
        bucket: its number; None where each distinct cost has its own.
        cost: of its first member.
        members: prefixes.
        scores: of each.
    """

    bucket: int | None
    cost: float
    members: tuple[Architecture, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Visit:
    """Published: one visit of a layer: what was tried, and the row `M_l` after it.

    Attributes:
        round: from 0.
        layer: index of the layer.
        tried: prefixes in the order of trying; those dropped without a score included.
        row: the buckets of the layer afterwards, cheapest first.
    """

    round: int
    layer: int
    tried: tuple[Tried, ...]
    row: tuple[Standing, ...]


@dataclass(frozen=True)
class Pick:
    """The answer of one budget, and how it came to be.

    Attributes:
        architecture: of the answer.
        evaluation: number of its first evaluation.
        by: what decided: the best (mean) score, or the best expected score.
        merit: by that measure.
        among: networks that could have been the answer.
        second: the next best of them, or None.
        second_merit: by the same measure.
        recombination: place of the one that is told in `path` and `rows`: the one that brought
            the answer, perhaps under another budget, else the last one under this budget; None
            where nothing was recombined.
        path: where the answer's prefixes stood in it; empty where one was out of its reach.
        rows: its rows, layer by layer.
    """

    architecture: Architecture
    evaluation: int
    by: Literal["score", "expected score"]
    merit: float
    among: int
    second: Architecture | None
    second_merit: float | None
    recombination: int | None
    path: tuple[Step, ...]
    rows: tuple[tuple[Bucket, ...], ...]


@dataclass(frozen=True)
class Trace:
    """Everything that a search did.

    Attributes:
        layers: names and options, in forward order.
        budgets: limits that hold together, for each network that was asked for: one, but for a
            frontier. The first limit orders the scored networks.
        settings: of the search.
        evaluations: networks that it was allowed to score.
        seed: of all draws.
        search: which of the run's searches this is, from 1.
        searches: how many there are.
        scored: every evaluation in order.
        visits: published only.
        recombinations: guided only.
        picks: the answer of each budget; fewer while the search is not over, and where nothing
            could be picked.
    """

    layers: tuple[NamedLayer, ...]
    budgets: tuple[tuple[TracedLimit, ...], ...]
    settings: SearchSettings
    evaluations: int
    seed: int
    search: int
    searches: int
    scored: tuple[Evaluation, ...]
    visits: tuple[Visit, ...]
    recombinations: tuple[Recombination, ...]
    picks: tuple[Pick, ...]

    @property
    def pick(self) -> Pick | None:
        """The answer of the first budget, which is the only one but for a frontier."""
        return self.picks[0] if self.picks else None

    @property
    def unit(self) -> str:
        """Of the costs that sort prefixes into buckets: the first with a table, if any."""
        limits = self.budgets[0]
        return next((t.unit for t in limits if not t.measured), limits[0].unit)
