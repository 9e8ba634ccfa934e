"""The best networks of each cost under additive effects, layer by layer. Knows no torch.

This is LayerNAS's own recombination (arXiv 2304.11517, section 4): of all partial choices with
about equal cost only the best is kept, and extended by each option of the next layer. Here the
partial choices are not scored one by one; a model of the scores judges them all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from compressor.search.kernels import Effects, Floats, Networks

Ints = NDArray[np.int64]
Places = NDArray[np.intp]


def best_of_each_cost(
    views: Sequence[Effects], steps: Ints, window: tuple[int, int], each: int = 2
) -> list[Networks]:
    """For every cost in the window, the networks with the largest sum of effects.

    Exact for these effects and steps, in O(cost * options * layers) operations for each view, and
    options times as many where neighbouring layers interact.

    Args:
        views: effects of the options, each view for itself; an option that a layer does not have
            is -inf.
        steps: cost of each option in whole buckets above the cheapest of its layer, [L, S].
        window: first and last total cost asked for, in buckets.
        each: networks for each cost, with different options in the last layer.

    Returns:
        For each view [N, L], by rising cost; costs that no network has are left out.
    """
    low, high = max(0, window[0]), window[1]
    if high < low:
        return [np.zeros((0, len(steps)), dtype=np.int64) for _ in views]
    main = np.stack([view.main for view in views], axis=1)
    # a step beyond the window is as good as any other
    steps = np.minimum(steps, high + 1)
    pairs = [view.pairs for view in views if view.pairs is not None and view.pairs.any()]
    if pairs:
        nothing = np.zeros_like(pairs[0])
        every = [nothing if view.pairs is None else view.pairs for view in views]
        rows: _Paired | _Apart = _Paired(main, np.stack(every, axis=1), steps, high + 1)
    else:
        rows = _Apart(main, steps, high + 1)
    tail = rows.last[:, :, low:]
    order = np.argsort(-tail, axis=1, kind="stable")[:, :each].transpose(0, 2, 1)
    finite = np.isfinite(np.take_along_axis(tail.transpose(0, 2, 1), order, axis=2))
    view, cost, place = np.nonzero(finite)
    networks = rows.trace_back(view, cost + low, order[view, cost, place])
    return [networks[view == v] for v in range(len(views))]


class _Apart:
    """Layers whose effects add up: of all partial choices of a cost the best is kept."""

    def __init__(self, main: Floats, steps: Ints, width: int) -> None:
        self._main, self._steps = main, steps
        # a row for each number of decided layers; costs below zero in front are out of reach
        self._front = int(steps.max())
        self._rows = np.full((*main.shape[:2], self._front + width), -np.inf)
        self._rows[0, :, self._front] = 0.0
        shifted = sliding_window_view(self._rows, width, axis=2)
        for layer, (start, effects) in enumerate(zip(self._front - steps, main, strict=True)):
            # value of each cost by the option of this layer, [views, S, width]
            self.last = shifted[layer][:, start]
            self.last += effects[:, :, None]
            if layer + 1 < len(steps):
                np.maximum.reduce(self.last, 1, out=self._rows[layer + 1, :, self._front :])

    def trace_back(self, view: Places, cost: Places, last: Places) -> Networks:
        """The networks of these costs and options of the last layer."""
        networks = np.zeros((len(cost), len(self._steps)), dtype=np.int64)
        networks[:, -1] = last
        # where the values stand in the rows of all views, one after the other
        place = view * self._rows.shape[2] + self._front + cost
        for layer in range(len(self._steps) - 2, -1, -1):
            place = place - self._steps[layer + 1].take(last)
            before = self._rows[layer].ravel().take(place[:, None] - self._steps[layer])
            before += self._main[layer].take(view, axis=0)
            last = before.argmax(axis=1)
            networks[:, layer] = last
        return networks


class _Paired:
    """Layers that interact with the next: the best is kept for each option of the last layer."""

    def __init__(self, main: Floats, pairs: Floats, steps: Ints, width: int) -> None:
        self._steps, self._pairs = steps, pairs
        (views, options), front = main.shape[1:], int(steps.max())
        every = np.arange(options)
        best = np.full((views, options, front + width), -np.inf)
        shifted = sliding_window_view(best, width, axis=2)
        best[:, :, front] = 0.0
        # value of each cost by the option of the layer, [views, S, width], for every layer
        self._rows: list[Floats] = []
        for layer, (step, effects) in enumerate(zip(steps, main, strict=True)):
            if layer:
                before = self._rows[-1][:, :, None] + pairs[layer - 1][:, :, :, None]
                np.maximum.reduce(before, 1, out=best[:, :, front:])
            self._rows.append(shifted[:, every, front - step] + effects[:, :, None])
        self.last = self._rows[-1]

    def trace_back(self, view: Places, cost: Places, last: Places) -> Networks:
        """The networks of these costs and options of the last layer."""
        networks = np.zeros((len(cost), len(self._steps)), dtype=np.int64)
        networks[:, -1] = last
        for layer in range(len(self._steps) - 1, 0, -1):
            cost = cost - self._steps[layer][last]
            before = self._rows[layer - 1][view, :, cost] + self._pairs[layer - 1][view, :, last]
            last = before.argmax(axis=1)
            networks[:, layer - 1] = last
        return networks
