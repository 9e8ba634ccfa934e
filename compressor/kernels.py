"""What scores of similar networks have in common, as covariances. Knows no torch.

The score of a network is modelled as a sum of effects of its layers' options. Three kinds of
knowledge say which effects resemble each other: an option may do the same everywhere (*shared*),
nearly the same in layers that lie close together (*depth*), or something else in each layer
(*own*, with an amount for each layer, since some layers matter much more than others). Effects
are *smooth* over the order of the options, or *free* of any order. *Pairs* are interactions of
neighbouring layers, and the *rest* is whatever else similar networks share. How much there is of
each is left to the data (`compressor.surrogate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Networks = NDArray[np.int64]
"""Architectures, [N, L]."""

_SMOOTHNESS = 0.7  # correlation length over the options, as a share of their range
_REACH = 2.0  # correlation length over the depth, in layers
_FAR = 0.6  # correlation of the rest that survives where a layer differs completely

_LEAST = 1e-6  # variance below which options do not differ

_FREEDOM = 0.1  # share of own effects and pairs that does not follow the order of the options
# variances as far as nothing is known, as shares of the variance of the scores
_SHARED = (0.2, 0.05, 0.2, 0.05)  # shared and depth, each smooth and free
_OWN = 0.25  # of each layer, were all layers like it
_PAIRS = 0.05
_REST = 0.1


@dataclass(frozen=True)
class Effects:
    """What each option adds to a score.

    Attributes:
        main: effect of each option of each layer, [L, S]; padded where a layer has fewer than S.
        pairs: interactions of each layer with the next, [L - 1, S, S].
    """

    main: Floats
    pairs: Floats

    def of(self, networks: Networks) -> Floats:
        """Sum of the effects of each network, [N]."""
        layers = np.arange(networks.shape[1])
        total: Floats = self.main[layers, networks].sum(axis=1)
        total += self.pairs[layers[:-1], networks[:, :-1], networks[:, 1:]].sum(axis=1)
        return total


class Kernels:
    """Covariances of the parts between networks of one space, each of about unit variance."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Places the options of all layers on one grid, from the first (0) to the last (1)."""
        layers, most = len(sizes), max(sizes)
        places = [[o / (n - 1) if n > 1 else 1.0 for o in range(n)] for n in sizes]
        grid = np.array(sorted({round(place, 9) for row in places for place in row}))
        self._at = np.zeros((layers, most), dtype=np.int64)
        for layer, row in enumerate(places):
            self._at[layer, : len(row)] = np.searchsorted(grid, np.round(row, 9))
        self._layers = np.arange(layers)
        smooth = np.exp(-0.5 * ((grid[:, None] - grid) / _SMOOTHNESS) ** 2)
        free = np.eye(len(grid))
        self._smooth, self._free = _centred(smooth), _centred(free)
        self._mixed = (1 - _FREEDOM) * self._smooth + _FREEDOM * self._free
        self._alike = np.log(_FAR + (1 - _FAR) * (smooth + free) / 2)
        self._near = np.exp(-np.abs(self._layers[:, None] - self._layers) / _REACH)
        self._roots = {
            "smooth": _root(self._smooth), "free": _root(self._free),
            "mixed": _root(self._mixed), "near": _root(self._near),
        }  # fmt: skip

    @property
    def prior(self) -> Floats:
        """Share of each part in the variance of the scores, as far as nothing is known.

        Shared and depth, each smooth and free; then own, one part for each layer; pairs; rest.
        """
        layers = len(self._layers)
        return np.array([*_SHARED, *[_OWN] * layers, _PAIRS, _REST])

    def between(self, first: Networks, second: Networks) -> Floats:
        """Covariance of each part, [parts, N, M]."""
        layers = len(self._layers)
        places, others = self._places(first), self._places(second)
        one, two = self._marked(places), self._marked(others)
        counts, other_counts = one.sum(axis=1), two.sum(axis=1)
        flat, near = one.reshape(len(one), -1), self._near @ two
        parts = []
        for kernel in (self._smooth, self._free):
            parts.append(counts @ kernel @ other_counts.T / layers)
        for kernel in (self._smooth, self._free):
            parts.append(flat @ (near @ kernel).reshape(len(two), -1).T / layers)
        own = self._mixed[places.T[:, :, None], others.T[:, None]]
        pairs = np.einsum("lnm,lnm->nm", own[1:], own[:-1]) / max(1, layers - 1)
        alike = flat @ (two @ self._alike).reshape(len(two), -1).T
        return np.concatenate([parts, own / layers, [pairs, np.exp(alike)]])

    def variances(self, networks: Networks) -> Floats:
        """Prior variance of each part, [parts, N]."""
        layers = len(self._layers)
        places = self._places(networks)
        marks = self._marked(places)
        counts, near = marks.sum(axis=1), self._near @ marks
        parts = []
        for kernel in (self._smooth, self._free):
            parts.append(((counts @ kernel) * counts).sum(axis=1) / layers)
        for kernel in (self._smooth, self._free):
            parts.append(((near @ kernel) * marks).sum(axis=(1, 2)) / layers)
        own = self._mixed[places, places].T
        pairs = (own[1:] * own[:-1]).sum(axis=0) / max(1, layers - 1)
        return np.concatenate([parts, own / layers, [pairs, np.ones(len(networks))]])

    def effects(self, networks: Networks, weights: Floats, amounts: Floats) -> Effects:
        """Covariance of every effect with `weights @ scores of networks`.

        Args:
            networks: [N, L].
            weights: [N].
            amounts: variance of each part.
        """
        layers = len(self._layers)
        places = self._places(networks)
        marks = np.tensordot(weights, self._marked(places), 1)
        shared, depth = (
            (amounts[i] * self._smooth + amounts[i + 1] * self._free) / layers for i in (0, 2)
        )
        own = amounts[4:-2, None] / layers * (marks @ self._mixed)
        main = marks.sum(axis=0) @ shared + self._near @ marks @ depth + own
        rows = self._mixed[places].transpose(1, 2, 0)
        pairs = (rows[:-1] * weights) @ rows[1:].transpose(0, 2, 1)
        return self._spread(main, amounts[-2] / max(1, layers - 1) * pairs)

    def draw(self, amounts: Floats, rng: np.random.Generator) -> Effects:
        """Effects drawn from the prior."""
        layers, grid = len(self._layers), len(self._smooth)
        own = rng.standard_normal((layers, grid)) * np.sqrt(amounts[4:-2, None])
        main = own @ self._roots["mixed"].T
        for place, form in enumerate(("smooth", "free")):
            shared = rng.standard_normal(grid) * np.sqrt(amounts[place])
            depth = rng.standard_normal((layers, grid)) * np.sqrt(amounts[2 + place])
            main += (shared + self._roots["near"] @ depth) @ self._roots[form].T
        main /= np.sqrt(layers)
        root = self._roots["mixed"]
        pairs = root @ rng.standard_normal((layers - 1, grid, grid)) @ root.T
        return self._spread(main, np.sqrt(amounts[-2] / max(1, layers - 1)) * pairs)

    def _places(self, networks: Networks) -> Networks:
        return self._at[self._layers, networks]

    def _marked(self, places: Networks) -> Floats:
        """One-hot, [N, L, grid]."""
        return np.eye(len(self._smooth))[places]

    def _spread(self, main: Floats, pairs: Floats) -> Effects:
        """From the grid to the options."""
        at = self._at
        before, after = at[:-1, :, None], at[1:, None, :]
        return Effects(
            main[self._layers[:, None], at], pairs[self._layers[:-1, None, None], before, after]
        )


def _centred(kernel: Floats) -> Floats:
    """Takes out what all options have in common, which is in the mean of the scores already.

    What is left gets a mean variance of 1, so that amounts of all kernels mean the same.
    """
    rows = kernel - kernel.mean(axis=0)
    centred: Floats = rows - rows.mean(axis=1, keepdims=True)
    return centred / max(float(centred.diagonal().mean()), _LEAST)


def _root(kernel: Floats) -> Floats:
    """A matrix whose product with its transpose is the kernel."""
    values, vectors = np.linalg.eigh(kernel)
    root: Floats = vectors * np.sqrt(np.maximum(values, 0))
    return root
