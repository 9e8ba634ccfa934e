"""What scores of similar networks have in common, as covariances. Knows no torch.

The score of a network is modelled as a sum of effects of its layers' options. Three kinds of
knowledge say which effects resemble each other: an option may do the same everywhere (*shared*),
nearly the same in layers that lie close together (*depth*), or something else in each layer
(*own*, with an amount for each layer, since some layers matter much more than others). Effects
are *smooth* over the order of the options, or *free* of any order. *Pairs* are interactions of
neighbouring layers, and the *rest* is whatever else similar networks share. How much there is of
each is left to the data (`compressor.search.surrogate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
_ALONE = 0.1  # what a network has for itself
_DIFFERENT = 0.9  # the rest of different networks is less: one layer alone takes it down to 0.8
_MOST_PAIRS = 3500  # pairs of options of neighbouring layers up to which they are modelled


@dataclass(frozen=True)
class Effects:
    """What each option adds to a score.

    Attributes:
        main: effect of each option of each layer, [L, S]; padded where a layer has fewer than S.
        pairs: interactions of each layer with the next, [L - 1, S, S]; None where there are none.
    """

    main: Floats
    pairs: Floats | None = None

    def __add__(self, other: Effects) -> Effects:
        """Both together."""
        if self.pairs is None or other.pairs is None:
            pairs = other.pairs if self.pairs is None else self.pairs
        else:
            pairs = self.pairs + other.pairs
        return Effects(self.main + other.main, pairs)

    def of(self, networks: Networks) -> Floats:
        """Sum of the effects of each network, [N]."""
        layers = np.arange(networks.shape[1])
        total: Floats = self.main[layers, networks].sum(axis=1)
        if self.pairs is not None:
            total += self.pairs[layers[:-1], networks[:, :-1], networks[:, 1:]].sum(axis=1)
        return total


@dataclass(frozen=True)
class Marks:
    """Networks as the kernels see them.

    Attributes:
        networks: the architectures, [N, L].
        places: where each chosen option lies on the grid, [N, L].
        marks: 1 there, else 0, [N, L * grid].
        counts: how many layers have each place, [N, grid].
    """

    networks: Networks
    places: Networks
    marks: Floats
    counts: Floats

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.networks)

    def part(self, rows: slice) -> Marks:
        """Some of the networks; views."""
        return Marks(self.networks[rows], self.places[rows], self.marks[rows], self.counts[rows])


class Kernels:
    """Covariances of the parts between networks of one space, each of about unit variance.

    The *common* parts are one number for each two networks. The *own* parts, one for each layer,
    are never held one by one: memory is O(N * L * options + N^2).

    Attributes:
        layers: number of layers.
        common: number of common parts.
        paired: whether pairs are modelled. In large spaces they are not: there are more of them
            than evaluations could ever tell, and recombining them would take options^2.
        prior: share of each part in the variance of the scores, as far as nothing is known.
            Shared and depth, each smooth and free; pairs, if modelled; rest; what networks have
            for themselves; then own.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """Places the options of all layers on one grid, from the first (0) to the last (1)."""
        self.layers, most = len(sizes), max(sizes)
        layers = self.layers
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
        self.paired = layers > 1 and (layers - 1) * most**2 <= _MOST_PAIRS
        shares = [*_SHARED, *([_PAIRS] if self.paired else []), _REST, _ALONE]
        self.common = len(shares)
        self.prior: Floats = np.array([*shares, *[_OWN] * layers])

    def marked(self, networks: Networks) -> Marks:
        """Networks [N, L], prepared for the other methods."""
        places = self._at[self._layers, networks]
        shape = (len(networks), self.layers, len(self._smooth))
        marks = np.zeros(shape)
        np.put_along_axis(marks, places[:, :, None], 1.0, axis=2)
        flat = marks.reshape(shape[0], shape[1] * shape[2])
        return Marks(networks, places, flat, marks.sum(axis=1))

    def between(self, first: Marks, second: Marks) -> Floats:
        """Covariance of each common part, [common, N, M]; quick where `first` are few."""
        one = self._cubes(first)
        near = self._near @ one
        bends = [near @ self._smooth, near @ self._free, one @ self._alike]
        smooth, free, alike = np.split(_times(np.concatenate(bends), second), 3)
        parts = [*self._shared(first, second), smooth / self.layers, free / self.layers]
        if self.paired:
            parts.append(self._interactions(first, second))
        rest = np.exp(alike)
        return np.array([*parts, rest, rest > _DIFFERENT])

    def covariance(self, first: Marks, second: Marks, amounts: Floats) -> tuple[Floats, Floats]:
        """Of the sum of all parts, [N, M], and the variances of the first, [N]; N should be small.

        Args:
            first: N networks.
            second: M networks.
            amounts: variance of each part, common and own.
        """
        one = self._cubes(first)
        depth = amounts[2] * self._smooth + amounts[3] * self._free
        bends = self._near @ one @ depth + amounts[self.common :, None] * (one @ self._mixed)
        straight = _times(np.concatenate([bends, one @ self._alike]), second)
        additive, alike = np.split(straight, 2)
        rest = np.exp(alike)
        total = additive / self.layers + amounts[self.common - 2] * rest
        total += amounts[self.common - 1] * (rest > _DIFFERENT)
        total += np.tensordot(amounts[:2], self._shared(first, second), 1)
        shared = amounts[0] * self._smooth + amounts[1] * self._free
        variances = ((first.counts @ shared) * first.counts).sum(axis=1)
        variances += np.einsum("nlg,nlg->n", bends, one)
        variances = variances / self.layers + amounts[self.common - 2 : self.common].sum()
        if self.paired:
            total += amounts[4] * self._interactions(first, second)
            own = self._mixed[first.places, first.places]
            pairs = (own[:, 1:] * own[:, :-1]).sum(axis=1)
            variances += amounts[4] * pairs / (self.layers - 1)
        return total, variances

    def own(self, first: Marks, second: Marks, amounts: Floats) -> Floats:
        """Covariance of the sum of the own parts, [N, M]; amounts of these alone, [L]."""
        rows = self._mixed[first.places] * (amounts / self.layers)[:, None]
        return _times(rows, second)

    def own_contents(self, known: Marks, inverse: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """For each own part K `weights @ K @ weights`, and the trace of `inverse @ K`; each [L]."""
        layers = self.layers
        sums = (weights @ known.marks).reshape(layers, -1)
        fits = ((sums @ self._mixed) * sums).sum(axis=1)
        spread = self._cubes(replace(known, marks=inverse @ known.marks))
        traces = np.einsum("nlg,nlg->l", self._mixed[known.places], spread)
        return fits / layers, traces / layers

    def effects(self, known: Marks, weights: Floats, amounts: Floats) -> Effects:
        """Covariance of every effect with `weights @ scores of networks`.

        Args:
            known: N networks.
            weights: [N].
            amounts: variance of each part, common and own.
        """
        layers = self.layers
        marks = (weights @ known.marks).reshape(layers, -1)
        shared, depth = (
            (amounts[i] * self._smooth + amounts[i + 1] * self._free) / layers for i in (0, 2)
        )
        own = amounts[self.common :, None] / layers * (marks @ self._mixed)
        main = marks.sum(axis=0) @ shared + self._near @ marks @ depth + own
        if not self.paired:
            return self._spread(main, None)
        rows = self._mixed[known.places].transpose(1, 2, 0)
        pairs = (rows[:-1] * weights) @ rows[1:].transpose(0, 2, 1)
        return self._spread(main, amounts[4] / (layers - 1) * pairs)

    def draw(self, amounts: Floats, rng: np.random.Generator) -> Effects:
        """Effects drawn from the prior."""
        layers, grid = self.layers, len(self._smooth)
        own = rng.standard_normal((layers, grid)) * np.sqrt(amounts[self.common :, None])
        main = own @ self._roots["mixed"].T
        for place, form in enumerate(("smooth", "free")):
            shared = rng.standard_normal(grid) * np.sqrt(amounts[place])
            depth = rng.standard_normal((layers, grid)) * np.sqrt(amounts[2 + place])
            main += (shared + self._roots["near"] @ depth) @ self._roots[form].T
        main /= np.sqrt(layers)
        if not self.paired:
            return self._spread(main, None)
        root = self._roots["mixed"]
        pairs = root @ rng.standard_normal((layers - 1, grid, grid)) @ root.T
        return self._spread(main, np.sqrt(amounts[4] / (layers - 1)) * pairs)

    def _cubes(self, some: Marks) -> Floats:
        """Marks by network, layer and place, [N, L, grid]."""
        return some.marks.reshape(len(some), self.layers, len(self._smooth))

    def _shared(self, first: Marks, second: Marks) -> list[Floats]:
        layers, counts = self.layers, second.counts.T
        return [first.counts @ kernel @ counts / layers for kernel in (self._smooth, self._free)]

    def _interactions(self, first: Marks, second: Marks) -> Floats:
        own = self._mixed[first.places.T[:, :, None], second.places.T[:, None]]
        pairs: Floats = np.einsum("lnm,lnm->nm", own[1:], own[:-1]) / (self.layers - 1)
        return pairs

    def _spread(self, main: Floats, pairs: Floats | None) -> Effects:
        """From the grid to the options."""
        at = self._at
        main = main[self._layers[:, None], at]
        if pairs is None:
            return Effects(main)
        before, after = at[:-1, :, None], at[1:, None, :]
        return Effects(main, pairs[self._layers[:-1, None, None], before, after])


def _times(cubes: Floats, second: Marks) -> Floats:
    """Sums over the marks of the second networks, [N, M]."""
    product: Floats = cubes.reshape(len(cubes), second.marks.shape[1]) @ second.marks.T
    return product


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
