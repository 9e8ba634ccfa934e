"""Times callables in turns and says how sure the figures are. Knows no ONNX and no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from compressor.errors import UsageError

Runner = Callable[[], object]
Clock = Callable[[], float]

_WINDOW = 5  # warm-up: two neighbouring windows of this many runs are compared
_STABLE = 0.05  # … and their medians may differ by this share
_EXACT = 200  # beyond so many values the normal approximation is right to a rank
_ROUNDS_FOR_95 = 6  # fewer values have no 95 % interval of the median: 2 * 0.5**5 > 0.05


@dataclass(frozen=True)
class Schedule:
    """How much is run.

    Attributes:
        warmup: most warm-up runs of a model; fewer where its time is stable earlier.
        repeats: timed runs of a model in one turn. A turn starts with one run that is not timed,
            because the model before it has taken the processor's caches.
        rounds: fewest rounds, whatever they take.
        seconds: time after which no further round starts; warm-up takes at most a quarter of it
            for all models together, or three runs of each where those take longer.
    """

    warmup: int = 50
    repeats: int = 5
    rounds: int = 10
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.repeats < 1 or self.seconds <= 0:
            raise UsageError(
                "warmup and repeats must be at least 1 and seconds above 0, but got "
                f"{self.warmup}, {self.repeats} and {self.seconds:g}"
            )
        if self.rounds < _ROUNDS_FOR_95:
            raise UsageError(
                f"rounds must be at least {_ROUNDS_FOR_95}, the fewest that give a 95 % interval, "
                f"but got {self.rounds}"
            )


@dataclass(frozen=True)
class Latency:
    """What one call takes, in milliseconds.

    Attributes:
        median_ms: median over the rounds of each round's median.
        p10_ms: a tenth of all timed runs was faster.
        p90_ms: a tenth of all timed runs was slower.
        low_ms: lower end of the 95 % interval of the median.
        high_ms: upper end of it.
        runs: timed runs.
        ratio: median over the rounds of the time as a share of the first model's in that round.
        ratio_low: lower end of the 95 % interval of the ratio.
        ratio_high: upper end of it.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    low_ms: float
    high_ms: float
    runs: int
    ratio: float
    ratio_low: float
    ratio_high: float


def time_in_turns(
    runners: Mapping[str, Runner],
    schedule: Schedule,
    *,
    clock: Clock = time.perf_counter,
    rng: np.random.Generator,
) -> dict[str, Latency]:
    """Latency of each runner, in the order given; ratios are to the first.

    Each is warmed up first. Then every round lets each of them run once in random order, so that
    neither a slower machine nor a place in the order favours any of them.
    """
    start = clock()
    share = schedule.seconds / 4 / len(runners)
    for runner in runners.values():
        _warm_up(runner, schedule.warmup, share, clock)
    names = list(runners)
    turns: dict[str, list[list[float]]] = {name: [] for name in names}
    done = 0
    while done < schedule.rounds or clock() - start < schedule.seconds:
        for index in rng.permutation(len(names)):
            name = names[index]
            turns[name].append(_turn(runners[name], schedule.repeats, clock))
        done += 1
    first = turns[names[0]]
    return {name: _summary(turns[name], first) for name in names}


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from order statistics; no shape of the distribution assumed.

    With fewer than six values no such interval exists, and the extremes are returned.
    """
    ordered = sorted(values)
    rank = max(_rank(len(ordered)), 1)
    return ordered[rank - 1], ordered[len(ordered) - rank]


def _rank(count: int) -> int:
    """Largest rank whose order statistic lies above the median with a chance of at most 2.5 %."""
    if count > _EXACT:
        return math.floor(count / 2 - 0.98 * math.sqrt(count))
    tail, rank = 0.0, 0
    while rank < count:
        tail += math.comb(count, rank) / 2**count
        if tail > 0.025:
            break
        rank += 1
    return rank


def _warm_up(runner: Runner, most: int, seconds: float, clock: Clock) -> None:
    """Runs until the median of the last few runs is that of the few before them."""
    start = clock()
    taken: list[float] = []
    while len(taken) < most and (len(taken) < 3 or clock() - start < seconds):
        taken.append(_timed(runner, clock))
        if len(taken) >= 2 * _WINDOW:
            before = median(taken[-2 * _WINDOW : -_WINDOW])
            if abs(median(taken[-_WINDOW:]) - before) <= _STABLE * before:
                return


def _turn(runner: Runner, repeats: int, clock: Clock) -> list[float]:
    runner()
    return [_timed(runner, clock) for _ in range(repeats)]


def _timed(runner: Runner, clock: Clock) -> float:
    """Seconds that one call takes."""
    start = clock()
    runner()
    return clock() - start


def _summary(turns: Sequence[Sequence[float]], first: Sequence[Sequence[float]]) -> Latency:
    """Runs within a turn are alike, so that the rounds, not the runs, carry the uncertainty."""
    ms = [1e3 * median(turn) for turn in turns]
    ratios = [_ratio(a, 1e3 * median(b)) for a, b in zip(ms, first, strict=True)]
    every = [1e3 * run for turn in turns for run in turn]
    p10, p90 = np.percentile(every, [10, 90])
    low, high = median_interval(ms)
    ratio_low, ratio_high = median_interval(ratios)
    return Latency(
        median_ms=median(ms),
        p10_ms=float(p10),
        p90_ms=float(p90),
        low_ms=low,
        high_ms=high,
        runs=len(every),
        ratio=median(ratios),
        ratio_low=ratio_low,
        ratio_high=ratio_high,
    )


def _ratio(value: float, reference: float) -> float:
    """A clock too coarse to see either call says nothing against their being equal."""
    if reference > 0:
        return value / reference
    return 1.0 if value == 0 else math.inf
