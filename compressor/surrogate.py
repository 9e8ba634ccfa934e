"""A cheap model of the scores found so far: Gaussian, additive, fitted in milliseconds.

Knows no torch. The parts are those of `compressor.kernels`; how much of the scores' variance each
explains is set by marginal likelihood with weak priors, with the monotone updates for variance
components of Zhou et al. (J. Comput. Graph. Stat. 28, 2019). Draws follow Matheron's rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.kernels import Effects, Floats, Kernels, Networks

_ALONE = 0.1  # prior share of what a network has for itself
_NOISE = 0.1  # prior share of the noise of a score
_QUIET = 1e-6  # least share of the noise, for stable sums
_FIRST, _AGAIN = 20, 4  # updates of the amounts: at the start, and whenever they are renewed
_RENEWAL = 1.08  # growth of the number of scores that renews the amounts


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
        self._networks: Networks = np.zeros((0, len(sizes)), dtype=np.int64)
        self._inverse: Floats = np.zeros((0, 0))
        self._parts: Floats = np.zeros((len(self._kernels.prior) + 2, 0, 0))
        self._amounts: Floats | None = None
        self._renewed = 0

    def learn(self, networks: Networks, scores: Floats) -> None:
        """Takes in new networks behind those known, and all scores, known ones included."""
        known = len(scores) - len(networks)
        self._networks, self._parts = self._networks[:known], self._parts[:, :known, :known]
        self._extend(networks)
        self._mean = float(scores.mean())
        self._rest = scores - self._mean
        if len(scores) >= _RENEWAL * self._renewed:
            self._renewed = len(scores)
            self._set_amounts()
        self._finish()

    def pretend(self, networks: Networks) -> None:
        """Takes networks as scored as expected, until the next call of `learn`."""
        expected, _ = self.predict(networks)
        self._extend(networks)
        self._rest = np.append(self._rest, expected - self._mean)
        self._finish()

    def effects(self) -> Effects:
        """The expected effects."""
        return self._kernels.effects(self._networks, self._weights, self._theta)

    def draw(self, rng: np.random.Generator) -> Effects:
        """Effects drawn from what is believed of them."""
        prior = self._kernels.draw(self._theta, rng)
        others = self._root @ rng.standard_normal(len(self._networks))
        offset = np.sqrt(self._level) * rng.standard_normal()
        gap = self._rest - prior.of(self._networks) - others - offset
        change = self._kernels.effects(self._networks, self._inverse @ gap, self._theta)
        return Effects(prior.main + change.main, prior.pairs + change.pairs)

    def predict(self, networks: Networks) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the scores, without their noise, each [N]."""
        parts = self._kernels.between(networks, self._networks)
        same = (networks[:, None] == self._networks[None]).all(axis=2)
        cross = np.tensordot(self._theta, parts, 1) + self._level + self._alone * same
        prior = self._theta @ self._kernels.variances(networks) + self._level + self._alone
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
        """Variance of each part, then of what networks have for themselves, then of the noise."""
        if self._amounts is None:
            raise RuntimeError("a surrogate must learn before it is asked; call learn()")
        return self._amounts

    def _extend(self, networks: Networks) -> None:
        old, new = len(self._networks), len(networks)
        everything = np.concatenate([self._networks, networks])
        rows = self._kernels.between(networks, everything)
        same = (networks[:, None] == everything[None]).all(axis=2).astype(float)
        itself = np.eye(old + new)[old:]
        rows = np.concatenate([rows, same[None], itself[None]])
        parts = np.zeros((len(rows), old + new, old + new))
        parts[:, :old, :old] = self._parts
        parts[:, old:] = rows
        parts[:, :old, old:] = rows[:, :, :old].transpose(0, 2, 1)
        self._networks, self._parts = everything, parts

    def _set_amounts(self) -> None:
        """Raises the marginal likelihood times inverse-gamma priors, step by step."""
        variance = max(float(self._rest.var()), 1e-12)
        self._level = variance
        noise = _QUIET if self._deterministic else _NOISE
        modes = variance * np.array([*self._kernels.prior, _ALONE, noise])
        amounts = modes if self._amounts is None else self._amounts
        for _ in range(_FIRST if self._amounts is None else _AGAIN):
            self._solve(amounts)
            fit = (self._parts @ self._weights) @ self._weights * amounts**2
            trace = np.maximum(np.einsum("ik,jik->j", self._inverse, self._parts), 0)
            # the root of trace/2 x^2 + 2 x - (fit/2 + 2 mode) = 0; shape 1, mode `modes`
            goal = fit + 4 * modes
            amounts = goal / (np.sqrt(4 + trace * goal) + 2)
            if self._deterministic:
                amounts[-1] = modes[-1]
        self._amounts = amounts

    def _finish(self) -> None:
        amounts = self.amounts
        self._solve(amounts)
        own = self._theta[-1] * self._parts[-3] + amounts[-2] * self._parts[-2]
        self._root = np.linalg.cholesky(own + amounts[-1] * self._parts[-1])

    def _solve(self, amounts: Floats) -> None:
        self._theta, self._alone = amounts[:-2], float(amounts[-2])
        matrix = np.tensordot(amounts, self._parts, 1) + self._level
        self._inverse = np.linalg.inv(matrix).astype(np.float64)
        self._weights: Floats = self._inverse @ self._rest
