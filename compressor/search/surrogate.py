"""A cheap model of the scores found so far: Gaussian, additive, fitted in milliseconds.

Knows no torch. The parts are those of `compressor.search.kernels`; how much of the scores' variance
each explains is set by marginal likelihood with weak priors, with the monotone updates for variance
components of Zhou et al. (J. Comput. Graph. Stat. 28, 2019). These amounts are renewed whenever the
number of scores has grown by some share; in between a score costs O(N^2). Draws follow Matheron's
rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.search.kernels import Effects, Floats, Kernels, Networks
from compressor.search.memory import Memory

_NOISE = 0.1  # prior share of the noise of a score
_QUIET = 1e-6  # least share of the noise, for stable sums
_FIRST, _AGAIN = 20, 4  # updates of the amounts: at the start, and whenever they are renewed
_RENEWAL = 1.15  # growth of the number of scores that renews the amounts


class Surrogate:
    """Learns scores of networks and predicts others."""

    def __init__(self, sizes: Sequence[int], *, deterministic: bool) -> None:
        """Knows nothing yet.

        Args:
            sizes: number of options of each layer.
            deterministic: whether the same network always gets the same score.
        """
        self._kernels = Kernels(sizes)
        self._deterministic = deterministic
        self._known = Memory(self._kernels)
        self._certain = 0
        self._inverse: Floats = np.zeros((0, 0))
        self._certain_inverse = self._inverse
        self._amounts: Floats | None = None
        self._renewed = 0

    def learn(self, networks: Networks, scores: Floats) -> None:
        """Takes in new networks behind those known, and all scores, known ones included."""
        self._known.forget(self._certain)
        self._inverse = self._certain_inverse
        self._mean = float(scores.mean())
        self._rest = scores - self._mean
        if len(scores) >= _RENEWAL * self._renewed:
            self._renewed = len(scores)
            self._known.add(networks)
            self._set_amounts()
        else:
            self._extend(networks)
        self._certain, self._certain_inverse = len(scores), self._inverse
        self._weights: Floats = self._inverse @ self._rest

    def pretend(self, networks: Networks) -> None:
        """Takes networks as scored as expected, until the next call of `learn`."""
        expected, _ = self.predict(networks)
        self._extend(networks)
        self._rest = np.append(self._rest, expected - self._mean)
        self._weights = self._inverse @ self._rest

    def effects(self) -> Effects:
        """The expected effects."""
        return self._kernels.effects(self._known.marks, self._weights, self._theta)

    def draw(self, rng: np.random.Generator) -> Effects:
        """Effects drawn from what is believed of them."""
        known, common = self._known, self._kernels.common
        prior = self._kernels.draw(self._theta, rng)
        # the last two of the common parts are no effects of options
        own = np.tensordot(self._theta[common - 2 : common], known.parts[-2:], 1)
        own[np.diag_indices(len(own))] += self.amounts[-1]
        others = np.linalg.cholesky(own) @ rng.standard_normal(len(own))
        offset = np.sqrt(self._level) * rng.standard_normal()
        gap = self._rest - prior.of(known.marks.networks) - others - offset
        return prior + self._kernels.effects(known.marks, self._inverse @ gap, self._theta)

    def predict(self, networks: Networks) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the scores, without their noise, each [N]."""
        new = self._kernels.marked(networks)
        cross, prior = self._kernels.covariance(new, self._known.marks, self._theta)
        cross, prior = cross + self._level, prior + self._level
        variance = prior - np.einsum("nm,nm->n", cross @ self._inverse, cross)
        return self._mean + cross @ self._weights, np.sqrt(np.maximum(variance, 1e-12 * prior))

    def fitted(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what was learned, without its noise, each [N]."""
        noise = float(self.amounts[-1])
        variance = noise - noise**2 * self._inverse.diagonal()
        return self._mean + self._rest - noise * self._weights, np.sqrt(np.maximum(variance, 0))

    @property
    def noise(self) -> float:
        """Standard deviation of a single score about its expectation."""
        return float(np.sqrt(self.amounts[-1]))

    @property
    def amounts(self) -> Floats:
        """Variance of each part, as the kernels order them, then of the noise."""
        if self._amounts is None:
            raise RuntimeError("a surrogate must learn before it is asked; call learn()")
        return self._amounts

    @property
    def _theta(self) -> Floats:
        return self.amounts[:-1]

    def _extend(self, networks: Networks) -> None:
        """Takes in networks at the present amounts, and borders the inverse."""
        known = len(self._known.marks)
        self._known.add(networks)
        rows = self._matrix(self.amounts, known)
        cross, corner = rows[:, :known], rows[:, known:]
        bend = cross @ self._inverse
        own = corner - bend @ cross.T
        inner = np.linalg.inv((own + own.T) / 2)
        side = -inner @ bend
        self._inverse = np.block([[self._inverse - bend.T @ side, side.T], [side, inner]])

    def _set_amounts(self) -> None:
        """Raises the marginal likelihood times inverse-gamma priors, step by step."""
        variance = max(float(self._rest.var()), 1e-12)
        self._level = variance
        noise = _QUIET if self._deterministic else _NOISE
        modes = variance * np.array([*self._kernels.prior, noise])
        amounts = modes if self._amounts is None else self._amounts
        for _ in range(_FIRST if self._amounts is None else _AGAIN):
            fits, traces = self._contents(amounts)
            # the root of trace/2 x^2 + 2 x - (fit/2 + 2 mode) = 0; shape 1, mode `modes`
            goal = fits * amounts**2 + 4 * modes
            amounts = goal / (np.sqrt(4 + np.maximum(traces, 0) * goal) + 2)
            if self._deterministic:
                amounts[-1] = modes[-1]
        self._amounts = amounts
        self._inverse = np.linalg.inv(self._matrix(amounts)).astype(np.float64)

    def _contents(self, amounts: Floats) -> tuple[Floats, Floats]:
        """For each part K: `weights @ K @ weights`, and the trace of `inverse @ K`."""
        known, inverse = self._known, np.linalg.inv(self._matrix(amounts)).astype(np.float64)
        weights = inverse @ self._rest
        fits, traces = self._kernels.own_contents(known.marks, inverse, weights)
        common = (known.parts @ weights) @ weights
        common_traces = np.einsum("ik,jik->j", inverse, known.parts)
        return (
            np.concatenate([common, fits, [weights @ weights]]),
            np.concatenate([common_traces, traces, [np.trace(inverse)]]),
        )

    def _matrix(self, amounts: Floats, first: int = 0) -> Floats:
        """Covariance of the scores that are known, its rows from the first on."""
        marks, common = self._known.marks, self._kernels.common
        some = marks.part(slice(first, None))
        matrix = np.tensordot(amounts[:common], self._known.parts[:, first:], 1)
        matrix += self._kernels.own(some, marks, amounts[common:-1]) + self._level
        matrix[np.arange(len(some)), np.arange(first, len(marks))] += amounts[-1]
        return matrix
