"""How a search spends its evaluations. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from compressor.errors import SearchError

Strategy: TypeAlias = Literal["guided", "published"]


@dataclass(frozen=True)
class SearchSettings:
    """How LayerNAS spends its evaluations.

    Attributes:
        strategy: "guided" scores complete networks within the limits only, chosen by a model of
            the scores; "published" is Algorithm 1 of the paper as described.
        buckets: cost ranges of each layer (H); None makes one for each distinct cost in the
            published form, and a thousand in the guided one.
        kept: prefixes kept in each bucket (k); published only.
        parents: parents drawn in each visit of a layer (R); None allots from the evaluations;
            published only.
        children: options tried for each parent (T); None allots from the evaluations; published
            only.
        tightness: share of a limit that the answer uses at least, where a network can.
        deterministic: whether the score is a fixed function of the network. If so nothing is
            scored twice and the best score wins; if not, the guided strategy may score a network
            again, and the best expected score wins.
        batch: networks that the guided strategy asks for at once; as many as the executor has
            workers.
    """

    strategy: Strategy = "guided"
    buckets: int | None = 100
    kept: int = 3
    parents: int | None = None
    children: int | None = None
    tightness: float = 0.97
    deterministic: bool = True
    batch: int = 1

    def __post_init__(self) -> None:
        counts = {"kept": self.kept, "buckets": self.buckets, "batch": self.batch}
        counts |= {"parents": self.parents, "children": self.children}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise SearchError(f"{name} must be at least 1, but got {value}")
        if not 0 <= self.tightness <= 1:
            raise SearchError(f"tightness must be in 0..1, but got {self.tightness}")
        if self.strategy not in ("guided", "published"):
            raise SearchError(
                f"strategy must be 'guided' or 'published', but got {self.strategy!r}"
            )
