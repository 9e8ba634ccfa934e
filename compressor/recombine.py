"""The best networks of each cost under additive effects, layer by layer. Knows no torch.

This is LayerNAS's own recombination (arXiv 2304.11517, section 4): of all partial choices with
about equal cost only the best is kept, and extended by each option of the next layer. Here the
partial choices are not scored one by one; a model of the scores judges them all at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressor.kernels import Effects, Floats, Networks

Ints = NDArray[np.int64]


def best_of_each_cost(
    effects: Effects, steps: Ints, window: tuple[int, int], each: int = 2
) -> Networks:
    """For every cost in the window, the networks with the largest sum of effects.

    Exact for these effects and steps, in O(cost * options^2 * layers) operations.

    Args:
        effects: of the options; an option that a layer does not have is -inf.
        steps: cost of each option in whole buckets above the cheapest of its layer, [L, S].
        window: first and last total cost asked for, in buckets.
        each: networks for each cost, with different options in the last layer.

    Returns:
        [N, L], by rising cost; costs that no network has are left out.
    """
    low, high = max(0, window[0]), window[1]
    values, before = _forward(effects, steps, high + 1)
    tail = values[low : high + 1]
    order = np.argsort(-tail, axis=1, kind="stable")[:, :each]
    cost, place = np.nonzero(np.isfinite(np.take_along_axis(tail, order, axis=1)))
    return _trace_back(before, steps, cost + low, order[cost, place])


def _forward(effects: Effects, steps: Ints, width: int) -> tuple[Floats, list[NDArray[np.intp]]]:
    """Best value of each cost and last option, [width, S], and the options before."""
    layers, options = effects.main.shape
    start = np.full((width, options), -np.inf)
    inside = steps[0] < width
    start[steps[0][inside], np.flatnonzero(inside)] = effects.main[0][inside]
    values, before = start, []
    costs, columns = np.arange(width)[:, None], np.arange(options)
    for layer in range(1, layers):
        joined = values[:, None, :] + effects.pairs[layer - 1].T
        chosen = joined.argmax(axis=2)
        best = np.take_along_axis(joined, chosen[..., None], axis=2)[..., 0]
        source = costs - steps[layer]
        extended = best[np.maximum(source, 0), columns] + effects.main[layer]
        values = np.where(source >= 0, extended, -np.inf)
        before.append(chosen)
    return values, before


def _trace_back(
    before: list[NDArray[np.intp]], steps: Ints, cost: NDArray[np.intp], last: NDArray[np.intp]
) -> Networks:
    networks = np.zeros((len(cost), len(steps)), dtype=np.int64)
    networks[:, -1] = last
    for layer in range(len(steps) - 1, 0, -1):
        cost = cost - steps[layer][last]
        last = before[layer - 1][cost, last]
        networks[:, layer - 1] = last
    return networks
