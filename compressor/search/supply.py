"""Complete networks within the limits that are worth a score, from effects of options.

Knows no torch. Costs that are exact and cheap are asked of many networks at once. Measured costs
are slow, so they are guessed for the choice and asked of the chosen network alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.cost import Limit, costs_of, is_exact
from compressor.search.cost_guess import CostGuess
from compressor.search.kernels import Effects, Floats, Networks
from compressor.search.moves import Checked, Drawn, Recombined, Watch
from compressor.search.reach import Reach
from compressor.search.recombine import best_of_each_cost
from compressor.search.rounding import rounded
from compressor.space import Architecture

_BUCKETS = 1000  # cost ranges where none are asked for
_BASES = 4  # networks around which the first guess of the costs is taken
_TABLE_WINDOW, _MEASURED_WINDOW = 64, 256  # known costs that correct the guess
_PROPOSED = 40  # networks of each view beyond which one of each cost has to do
_TRIES = 3  # recombinations with corrected costs before other sources are asked
_MOST = 10.0  # share of a limit from which on costs are all the same to the guess
_SURE = 1e-9  # least error of a guess, and least chance
_STRAIN = 1.3  # factor on the weight of a limit that candidates break
_CANDIDATES = 512  # networks of one recombination that are looked at
_REPEATS = 10  # random networks in a row that bring nothing new before the space is looked through
_ENUMERATED = 2**16  # networks of spaces that can be looked through
_ENUMERATED_MEASURED = 256  # the same where each look is a measurement


class Supply:
    """Proposes networks; never one above a limit that it can check.

    Attributes:
        sizes: number of options of each layer.
        measured: limits whose costs are measured.
    """

    def __init__(
        self,
        reach: Reach,
        buckets: int | None,
        rng: random.Random,
        watch: Watch | None = None,
    ) -> None:
        """Guesses the costs around a few networks in the band; measures nothing."""
        self._reach, self._rng, self._watch = reach, rng, watch
        self.sizes = reach.sizes
        self._buckets = buckets or _BUCKETS
        self._real = _padding(reach.sizes)
        self._exact = [limit for limit in reach.limits if is_exact(limit)]
        self.measured = [limit for limit in reach.limits if not is_exact(limit)]
        self._limits = self._exact + self.measured
        self._lows = np.array([_low(limit) for limit in self._limits])
        self._ranged = any(limit.low is not None for limit in self._limits)
        self._weights = np.full(len(self._limits), 1 / len(self._limits))
        # costs that are only guessed are aimed at as well, but nothing is dropped for them
        self._aims = reach.in_band(reach.witness)
        self._rest: list[Architecture] | None = None
        bases = {reach.witness} | {self._drawn() for _ in range(_BASES - 1)}
        self._guesses = self._first_guesses(np.array(sorted(bases), dtype=np.int64))

    def recombined(
        self, effects: Sequence[Effects], seen: Container[Architecture]
    ) -> list[Architecture]:
        """The best networks of each cost near the limits for each of the given effects.

        They are new, inside every exact limit, and in the band where it is known to hold one.
        """
        return list(self._recombined(effects, seen))

    def _recombined(
        self, effects: Sequence[Effects], seen: Container[Architecture]
    ) -> dict[Architecture, Architecture]:
        """The same, each with the choices that came out, of all that stand for it."""
        found: dict[Architecture, Architecture] = {}
        left = dict(enumerate(effects))
        for _ in range(_TRIES):
            proposed = self._candidates(list(left.values()))
            if not proposed:
                break
            good = self._checked(np.concatenate([move.networks for move in proposed]))
            ends = np.cumsum([len(move.networks) for move in proposed])[:-1]
            for place, kept, move in zip(list(left), np.split(good, ends), proposed, strict=True):
                inside: dict[Architecture, Architecture] = {}
                for row in map(tuple, move.networks[kept].tolist()):
                    inside.setdefault(self._reach.canonical(row), row)
                new = {network: row for network, row in inside.items() if network not in seen}
                found |= {n: row for n, row in new.items() if n not in found}
                if self._watch is not None:
                    self._watch(move)
                    self._watch(Checked(place, tuple(inside), tuple(new)))
                if inside:
                    del left[place]
            if not left:
                break
        return found

    def best(
        self, effects: Effects, seen: Container[Architecture], above: float = -math.inf
    ) -> Architecture | None:
        """The best new network of some effects, if their sum is above a bound; inside all limits.

        Measured limits are asked of one network after the other, the best first.
        """
        found = self._recombined([effects], seen)
        networks, rows = list(found), list(found.values())
        values = effects.of(np.array(rows, dtype=np.int64)) if rows else np.zeros(0)
        for place in np.argsort(-values, kind="stable").tolist():
            if not values[place] > above:
                break
            network: Architecture = networks[place]
            if not self.measured or self.measured_inside(network):
                return network
        return None

    def random(self, seen: Container[Architecture]) -> Architecture | None:
        """A new network drawn at random from the band; None where there seems to be none."""
        drawn = (self._drawn() for _ in range(_REPEATS))
        network = next((n for n in drawn if n not in seen), None) or self._left_over(seen)
        if network is not None and self._watch is not None:
            self._watch(Drawn(network))
        return network

    def measured_inside(self, network: Architecture) -> bool:
        """Whether the network keeps the measured limits too; the guess learns from the answer."""
        inside = self._reach.inside(network)
        self._note_measured()
        return inside

    def _checked(self, networks: Networks) -> NDArray[np.bool_]:
        """Which are inside and, where that can be had, in the band, [N]; the guesses learn."""
        if not len(networks):
            return np.zeros(0, dtype=bool)
        shares = np.zeros((len(self._exact), len(networks)))
        for row, (limit, guess) in enumerate(zip(self._exact, self._guesses, strict=False)):
            shares[row] = _shares(limit, networks)
            guess.learn(networks, shares[row])
            if len(self._limits) > 1 and (shares[row] > 1).any():
                self._weights[row] *= _STRAIN
        self._weights = np.maximum(self._weights / self._weights.sum(), 0.02)
        full = self._reach.tightness if self._reach.holds_band and not self._ranged else -math.inf
        return self._kept(shares, full)

    def _candidates(self, effects: Sequence[Effects]) -> list[Recombined]:
        """Recombines with the guessed costs, mixed into one where there are several limits.

        Empty where not even the cheapest network seems to be near the limits.
        """
        weights = self._weights / self._weights.sum()
        table = sum(w * g.table for w, g in zip(weights, self._guesses, strict=True))
        offset = sum(w * g.offset for w, g in zip(weights, self._guesses, strict=True))
        cheapest = np.where(self._real, table, np.inf).min(axis=1, keepdims=True)
        start = offset + float(cheapest.sum())
        error = max(guess.error for guess in self._guesses)
        top = 1.0 + min(0.1, error)
        if start >= top:
            return []
        unit = (top - start) / self._buckets
        costs = np.where(self._real, (table - cheapest) / unit, 0)
        forms = [
            rounded(np.where(self._real, view.main, -np.inf), costs, self._buckets)
            for view in effects
        ]
        steps, shifts, spread = forms[0].steps, [f.shift for f in forms], 2 * forms[0].spread
        low = self._reach.tightness if len(weights) == 1 else self._reach.tightness * 0.8
        low = float(weights @ np.maximum(self._lows, 0)) if self._ranged else low
        first = (low - start - error) / unit - max(shifts) - spread if self._aims else 0
        window = math.floor(first), max(0, math.ceil(self._buckets - min(shifts) + spread))
        each = max(1, min(2, _PROPOSED // (1 + window[1] - max(0, window[0]))))
        views = [Effects(f.main, view.pairs) for f, view in zip(forms, effects, strict=True)]
        found = best_of_each_cost(views, steps, window, each)
        return [
            Recombined(view, steps, window, float(start), float(unit), _best(view, networks))
            for view, networks in zip(views, found, strict=True)
        ]

    def _kept(self, shares: Floats, full: float = -math.inf) -> NDArray[np.bool_]:
        """Which networks keep the exact limits and fill one so far, from shares of these, [N]."""
        lows = self._lows[: len(self._exact), None]
        most = shares.max(axis=0, initial=-math.inf)
        kept: NDArray[np.bool_] = ((shares <= 1) & (shares >= lows) & (most >= full)).all(axis=0)
        return kept

    def _drawn(self) -> Architecture:
        return self._reach.draw(self._rng) or self._reach.witness

    def _left_over(self, seen: Container[Architecture]) -> Architecture | None:
        """Small spaces are looked through for the last networks, the most expensive first."""
        if self._rest is None:
            self._rest = self._everything()
        while self._rest:
            network = self._reach.canonical(self._rest.pop())
            if network not in seen and (not self.measured or self.measured_inside(network)):
                return network
        return None

    def _everything(self) -> list[Architecture]:
        """All networks inside the exact limits, where they are few enough to be looked through."""
        sizes = self._reach.sizes
        if math.prod(sizes) > (_ENUMERATED_MEASURED if self.measured else _ENUMERATED):
            return []
        networks = np.indices(sizes).reshape(len(sizes), -1).T
        shares = np.zeros((len(self._exact), len(networks)))
        for row, limit in enumerate(self._exact):
            shares[row] = _shares(limit, networks)
        order = np.argsort(shares.max(axis=0, initial=0), kind="stable")
        return [tuple(row) for row in networks[order[self._kept(shares)[order]]].tolist()]

    def _first_guesses(self, bases: Networks) -> list[CostGuess]:
        guesses = [self._exact_guess(limit, bases) for limit in self._exact]
        for limit in self.measured:
            table = guesses[0].table if guesses else _positions(self._reach.sizes)
            guesses.append(CostGuess(*_fitted(table, *self._measurements(limit)), _MEASURED_WINDOW))
        return guesses

    def _exact_guess(self, limit: Limit, bases: Networks) -> CostGuess:
        """The mean effect of each option around the bases; exact for additive costs."""
        table = np.zeros(self._real.shape)
        for base in bases:
            # one layer after the other, since all changes together take memory
            for layer, size in enumerate(self._reach.sizes):
                changed = np.repeat(base[None], size, axis=0)
                changed[:, layer] = np.arange(size)
                table[layer, :size] += _shares(limit, changed)
        table = np.where(self._real, table - _shares(limit, bases).sum(), 0) / len(bases)
        guess = CostGuess(table, 0.0, _TABLE_WINDOW)
        offset = float((_shares(limit, bases) - guess.of(bases)).mean())
        return CostGuess(table, offset, _TABLE_WINDOW)

    def chances(self, networks: Sequence[Architecture]) -> Floats:
        """Logarithm of the chance that networks keep the measured limits, [N]."""
        chances = np.zeros(len(networks))
        if not networks:
            return chances
        places, exact = np.array(networks, dtype=np.int64), len(self._exact)
        for guess, low in zip(self._guesses[exact:], self._lows[exact:].tolist(), strict=True):
            error, shares = max(guess.error, _SURE), guess.of(places)
            ends = [((end - shares) / error / math.sqrt(2)).tolist() for end in (low, 1)]
            inside = [(math.erfc(-b) - math.erfc(-a)) / 2 for a, b in zip(*ends, strict=True)]
            chances += [math.log(max(chance, _SURE)) for chance in inside]
        return chances

    def _note_measured(self) -> None:
        for limit, guess in zip(self.measured, self._guesses[len(self._exact) :], strict=True):
            networks, shares = self._measurements(limit)
            guess.learn(networks[guess.learned :], shares[guess.learned :])

    def _measurements(self, limit: Limit) -> tuple[Networks, Floats]:
        known = self._reach.measured(limit)
        networks = np.array(list(known), dtype=np.int64)
        return networks, _of_limit(limit, np.array(list(known.values())))


def _shares(limit: Limit, networks: Networks) -> Floats:
    return _of_limit(limit, costs_of(limit.cost, networks))


def _low(limit: Limit) -> float:
    """The share of the limit that a network must have at least."""
    return -math.inf if limit.low is None else float(_of_limit(limit, np.array([limit.low]))[0])


def _best(effects: Effects, networks: Networks) -> Networks:
    """Of very many networks those with the largest effects, in the same order."""
    if len(networks) <= _CANDIDATES:
        return networks
    return networks[np.sort(np.argsort(-effects.of(networks), kind="stable")[:_CANDIDATES])]


def _of_limit(limit: Limit, costs: Floats) -> Floats:
    """Shares of the limit; above 1 exactly where a cost is above it, finite in any case."""
    shares = costs / limit.high if limit.high > 0 else 1 + costs - limit.high
    return np.minimum(shares, _MOST)


def _padding(sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Which options a layer really has, [L, S]."""
    real: NDArray[np.bool_] = np.arange(max(sizes)) < np.array(sizes)[:, None]
    return real


def _positions(sizes: Sequence[int]) -> Floats:
    """A cost that rises evenly over the options of every layer, [L, S]."""
    steps = np.maximum(1, np.array(sizes) - 1)[:, None] * len(sizes)
    positions: Floats = np.arange(max(sizes)) / steps
    return positions


def _fitted(table: Floats, networks: Networks, shares: Floats) -> tuple[Floats, float]:
    """The table scaled and shifted to known costs; rising, whatever the noise says."""
    sums = table[np.arange(len(table)), networks].sum(axis=1)
    spread = sums - sums.mean()
    slope = float(spread @ shares) / float(spread @ spread) if spread.any() else 1.0
    slope = slope if slope > 0 else 1.0
    return slope * table, float(shares.mean() - slope * sums.mean())
