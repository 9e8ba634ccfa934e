"""What was measured of every option alone, as the trend of the scores of whole networks.

Knows no torch. The measurements say how options compare; how much of the score one unit of them is
worth is fitted to the scores, and what they miss is left to `compressor.search.surrogate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.errors import SearchError
from compressor.search.kernels import Effects, Floats, Networks

Hints = Sequence[Sequence[float]]
"""For each layer a number for each option: what taking it alone costs; lower is better."""

_SPREAD = 0.4  # of the logarithm of one layer's measurements, in other views of them


class Trend:
    """The sum of the measurements of a network's options, times a slope."""

    def __init__(self, sizes: Sequence[int], hints: Hints) -> None:
        """Takes the measurements; knows no score yet.

        Raises:
            SearchError: the hints have another form than the layers, or are not finite.
        """
        require_form("hints", hints, sizes)
        self._table: Floats = np.zeros((len(sizes), max(sizes)))
        for layer, row in enumerate(hints):
            self._table[layer, : len(row)] = row
        if not np.isfinite(self._table).all():
            raise SearchError("hints must be finite numbers; leave the hints out")
        self._slope = -1.0

    def fit(self, networks: Networks, scores: Floats) -> None:
        """Least squares of the scores; a larger cost alone never counts as a gain."""
        sums = self._sums(networks)
        spread = sums - sums.mean()
        square = float(spread @ spread)
        if square > 0:
            self._slope = min(0.0, float(spread @ scores) / square)

    def of(self, networks: Networks) -> Floats:
        """The trend's share of the scores, up to a constant, [N]."""
        return self._slope * self._sums(networks)

    def effects(self) -> Effects:
        """The same as effects of options."""
        return Effects(self._slope * self._table)

    def view(self, rng: np.random.Generator) -> Effects:
        """Effects as they might be where each layer weighs somewhat more or less than measured."""
        weights = np.exp(_SPREAD * rng.standard_normal((len(self._table), 1)))
        return Effects(self._slope * weights * self._table)

    def _sums(self, networks: Networks) -> Floats:
        total: Floats = self._table[np.arange(len(self._table)), networks].sum(axis=1)
        return total


def require_form(what: str, hints: Hints, sizes: Sequence[int]) -> None:
    """Refuses numbers that do not fit the layers.

    Raises:
        SearchError: there is not one number for each option of each layer.
    """
    given = [len(row) for row in hints]
    if given != list(sizes):
        raise SearchError(
            f"{what} must give one number for each option of each layer, {list(sizes)}, but "
            f"there are {given}"
        )
