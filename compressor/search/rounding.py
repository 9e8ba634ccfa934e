"""Costs in whole buckets, at no advantage for what is rounded down. Knows no torch.

The recombination counts costs in buckets. Where a layer takes less than a few buckets, as in
networks of many layers, the best under rounded costs are those whose costs were rounded down most:
they look cheap, and are above the limit. So each option pays for its rounding, at the price that
cost has near the limit. Then the choice between options is that under true costs, and what is left
is chance: errors that grow as the root of the number of layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.search.kernels import Floats

_DOUBLINGS, _STEPS = 12, 12  # of the price, which needs to be right to some per cent only


@dataclass(frozen=True)
class Rounded:
    """Options with costs in buckets.

    Attributes:
        main: effect of each option less what its rounding is worth, [L, S].
        steps: cost of each option in whole buckets, [L, S].
        shift: true minus rounded cost of a good network near the limit, in buckets.
        spread: standard deviation of that difference.
    """

    main: Floats
    steps: NDArray[np.int64]
    shift: float
    spread: float


def rounded(main: Floats, costs: Floats, room: float) -> Rounded:
    """Rounds costs to whole buckets.

    Args:
        main: effect of each option, [L, S]; -inf where a layer does not have it.
        costs: of each option above the cheapest of its layer, in buckets, [L, S]; finite.
        room: what the layers may cost together, in buckets.
    """
    steps = np.rint(costs)
    errors = costs - steps
    price, chosen = _price(main, costs, room)
    shift = float(errors[np.arange(len(chosen)), chosen].sum())
    real = np.isfinite(main)
    counts = real.sum(axis=1)
    means = np.where(real, errors, 0).sum(axis=1) / counts
    spread = (np.where(real, errors - means[:, None], 0) ** 2).sum(axis=1) / counts
    return Rounded(
        main - price * errors, steps.astype(np.int64), shift, math.sqrt(float(spread.sum()))
    )


def _price(main: Floats, costs: Floats, room: float) -> tuple[float, NDArray[np.intp]]:
    """A price of a bucket at which the best options just keep the room, and these options.

    It is negative where cheaper networks are better and only the band asks for dearer ones.
    """
    layers = np.arange(len(main))

    def best(price: float) -> tuple[float, NDArray[np.intp]]:
        chosen = (main - price * costs).argmax(axis=1)
        return float(costs[layers, chosen].sum()), chosen

    highest = main.max(axis=1, keepdims=True)
    ranges = highest - np.where(np.isfinite(main), main, highest)
    scale = float(ranges.max(axis=1).sum()) / max(float(costs.max(axis=1).sum()), 1.0)
    low = high = 0.0
    spent, chosen = best(0.0)
    for doubling in range(_DOUBLINGS):
        if spent <= room:
            low = -scale * 2.0**doubling
            if best(low)[0] > room:
                break
        else:
            low, high = high, scale * 2.0**doubling
            spent, chosen = best(high)
            if spent <= room:
                break
    for _ in range(_STEPS):
        middle = (low + high) / 2
        spent, options = best(middle)
        if spent <= room:
            high, chosen = middle, options
        else:
            low = middle
    return high, chosen
