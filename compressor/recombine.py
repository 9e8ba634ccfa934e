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
    if high < low:
        return np.zeros((0, len(steps)), dtype=np.int64)
    rows = _forward(effects, steps, high + 1)
    tail = rows[-1][low:]
    order = np.argsort(-tail, axis=1, kind="stable")[:, :each]
    cost, place = np.nonzero(np.isfinite(np.take_along_axis(tail, order, axis=1)))
    return _trace_back(effects, steps, rows, cost + low, order[cost, place])


def _forward(effects: Effects, steps: Ints, width: int) -> list[Floats]:
    """`M_l` for every layer: the best value of each cost and last option, [width, S]."""
    options = effects.main.shape[1]
    start = np.full((width, options), -np.inf)
    inside = steps[0] < width
    start[steps[0][inside], np.flatnonzero(inside)] = effects.main[0][inside]
    rows = [start]
    costs, columns = np.arange(width)[:, None], np.arange(options)
    # what lies below the cheapest cost is taken from a row of -inf at the end
    best = np.full((width + 1, options), -np.inf)
    for step, main, pairs in zip(steps[1:], effects.main[1:], effects.pairs, strict=True):
        np.max(rows[-1][:, None, :] + pairs.T, axis=2, out=best[:-1])
        rows.append(best[np.maximum(costs - step, -1), columns] + main)
    return rows


def _trace_back(
    effects: Effects,
    steps: Ints,
    rows: list[Floats],
    cost: NDArray[np.intp],
    last: NDArray[np.intp],
) -> Networks:
    """The networks behind the values of the last row."""
    networks = np.zeros((len(cost), len(steps)), dtype=np.int64)
    networks[:, -1] = last
    for layer in range(len(steps) - 1, 0, -1):
        cost = cost - steps[layer][last]
        last = (rows[layer - 1][cost] + effects.pairs[layer - 1][:, last].T).argmax(axis=1)
        networks[:, layer - 1] = last
    return networks
