"""Synthetic networks of any size: chains of convolutions, scored by a formula, not trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.cost import Limit, SizeTable, TensorSize, madds_table
from compressor.coupling import Coupling, IndexMap, Role
from compressor.space import Architecture, ChannelGroup, Choice, SearchLayer, SearchSpace

_UNIT = 8  # channels that options of a layer differ by
_BUDGET = 0.5  # share of the original's multiply-adds


@dataclass(frozen=True)
class Chain:
    """A network of 3×3 convolutions, each of which may keep fewer channels.

    Attributes:
        space: its choices.
        cost: its multiply-adds.
        worth: what each option adds to the score, [L, S].
    """

    space: SearchSpace
    cost: SizeTable
    worth: NDArray[np.float64]

    @property
    def limit(self) -> Limit:
        """Half of the original's multiply-adds."""
        return Limit(self.cost, _BUDGET * self.cost(self.space.original))

    def score(self, architecture: Architecture) -> float:
        """Every layer saturates; layers differ in how much they matter."""
        return float(self.worth[np.arange(len(architecture)), architecture].sum())


def chain(layers: int, options: int) -> Chain:
    """A chain of four stages, each with a quarter of the positions of the one before."""
    rng = np.random.default_rng(0)
    width = _UNIT * options
    stages = np.arange(layers) * 4 // layers
    positions = [int(1024 // 4**stage) for stage in stages]
    space = SearchSpace(tuple(_layer(i, layers, options) for i in range(layers)))
    tensors = [
        TensorSize(f"conv{i}.weight", (width, 3 if i == 0 else width, 3, 3), positions[i])
        for i in range(layers)
    ]
    tensors.append(TensorSize("head.weight", (10, width), 1))
    strengths = np.exp(rng.normal(0, 1, (layers, 1)))
    worth = strengths * np.log1p(np.arange(options)) + rng.normal(0, 0.05, (layers, options))
    return Chain(space, madds_table(space, tensors, 0), worth)


def _layer(place: int, layers: int, options: int) -> SearchLayer:
    width = _UNIT * options
    reader = f"conv{place + 1}.weight" if place + 1 < layers else "head.weight"
    one = IndexMap.identity(width)
    group = ChannelGroup(
        width,
        1,
        tuple(range(width)),
        (
            Coupling(f"conv{place}.weight", 0, Role.PRODUCED, one),
            Coupling(reader, 1, Role.CONSUMED, one),
        ),
    )
    choices = tuple(Choice(_UNIT * (option + 1), None) for option in range(options))
    return SearchLayer(f"conv{place}", (f"conv{place}",), choices, group, None)
