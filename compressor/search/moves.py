"""What a search tells whoever watches it, move by move. Knows no torch.

A search that nobody watches makes none of these. Watching changes nothing: the events hold what
the search has anyway, and a watcher must not change them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compressor.search.kernels import Effects
from compressor.search.outcome import Outcome
from compressor.space import Architecture

Obstacle: TypeAlias = Literal["above a limit", "below a limit", "outside the band"]


@dataclass(frozen=True)
class Turned:
    """Of several budgets: what follows is done for this one."""

    budget: int


@dataclass(frozen=True)
class Scored:
    """One more evaluation, also one known from an earlier run."""

    architecture: Architecture
    outcome: Outcome


@dataclass(frozen=True)
class Picked:
    """The search is over.

    Attributes:
        networks: those that could be the answer.
        merits: of each, what they were compared by; higher is better.
        expected: whether merits are expected scores of a model instead of mean scores.
        best: the answer.
    """

    networks: tuple[Architecture, ...]
    merits: tuple[float, ...]
    expected: bool
    best: Architecture


@dataclass(frozen=True)
class Visited:
    """Published: the next layer is visited; None where what was set aside is spent."""

    layer: int | None


@dataclass(frozen=True)
class Dropped:
    """Published: a prefix that nothing within the limits extends; costs no evaluation."""

    prefix: Architecture
    obstacle: Obstacle


@dataclass(frozen=True)
class Judged:
    """Published: a prefix and what became of it.

    Attributes:
        prefix: the decided layers.
        network: the one that it was judged in.
        score: of the network; None where it failed or the evaluations were spent.
        cost: of the network, in the unit that sorts into buckets; None without a score.
        bucket: of that cost: its number, or all costs where each distinct cost has its own; None
            without a score.
        gone: the prefix that had to leave the bucket, itself perhaps.
    """

    prefix: Architecture
    network: Architecture
    score: float | None = None
    cost: float | None = None
    bucket: int | tuple[float, ...] | None = None
    gone: Architecture | None = None


@dataclass(frozen=True)
class Recombined:
    """Guided: a model's effects were recombined layer by layer.

    Attributes:
        effects: of the options, less what the rounding of their costs is worth
            (`compressor.search.rounding`); -inf where a layer has no such option.
        steps: cost of each option in whole buckets above the cheapest of its layer, [L, S].
        window: first and last total cost asked for, in buckets.
        start: guessed cost of the cheapest network, as a share of the limit.
        width: of a bucket, as a share of the limit.
        networks: what came out, [N, L].
    """

    effects: Effects
    steps: NDArray[np.int64]
    window: tuple[int, int]
    start: float
    width: float
    networks: NDArray[np.int64]


@dataclass(frozen=True)
class Checked:
    """Guided: what came out of the last recombination was held against the true costs.

    Attributes:
        place: of the recombined effects among those that were asked for.
        inside: networks within the exact limits and, where that can be had, in the band.
        new: those that were not scored before.
    """

    place: int
    inside: tuple[Architecture, ...]
    new: tuple[Architecture, ...]


@dataclass(frozen=True)
class Probed:
    """Guided: what the neighbours of a network gain is recombined next."""

    base: Architecture


@dataclass(frozen=True)
class Drawn:
    """Guided: a network that no recombination proposed."""

    architecture: Architecture


@dataclass(frozen=True)
class Asked:
    """Guided: networks that will be scored next.

    Attributes:
        networks: in the order of their scoring.
        expected: mean and standard deviation of each one's score; empty before the first score.
    """

    networks: tuple[Architecture, ...]
    expected: tuple[tuple[float, float], ...] = ()


Move: TypeAlias = (
    Turned
    | Scored
    | Picked
    | Visited
    | Dropped
    | Judged
    | Recombined
    | Checked
    | Probed
    | Drawn
    | Asked
)
Watch: TypeAlias = Callable[[Move], None]
