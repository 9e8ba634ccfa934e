"""Statistics over times that were taken in turns. Knows no ONNX, no torch and no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compressor.errors import UsageError

NOISY = 0.05  # half an interval's width over its middle: above it, the machine was too noisy
_FEWEST = 6  # rounds: fewer values have no 95 % interval of the median at all, 2 * 0.5**5 > 0.05
_BLOCKS = 100  # more rounds than that are put together, neighbours to neighbours
_RESAMPLES = 10_000
_SEED = 0

Verdict = Literal["faster", "slower", "cannot tell"]


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
        if self.warmup < 1 or self.repeats < 1 or not 0 < self.seconds < math.inf:
            raise UsageError(
                "warmup and repeats must be at least 1 and seconds above 0 and finite, but got "
                f"{self.warmup}, {self.repeats} and {self.seconds:g}"
            )
        if self.rounds < _FEWEST:
            raise UsageError(
                f"rounds must be at least {_FEWEST}, the fewest that give a 95 % interval, "
                f"but got {self.rounds}"
            )


@dataclass(frozen=True)
class Latency:
    """What one call takes, in milliseconds.

    Intervals are bootstrapped over rounds and meant to hold the true value in 95 of 100 cases.
    With few rounds they hold it in fewer: in 87 (seven rounds) to 96 with 6 to 10, 93 to 94 with
    15 to 30, 95 from 50 on. They know nothing of a machine that is slower tomorrow.

    Attributes:
        median_ms: median over the rounds of each round's median.
        p10_ms: a tenth of all timed runs was faster.
        p90_ms: a tenth of all timed runs was slower.
        low_ms: lower end of the 95 % interval of the median.
        high_ms: upper end of it.
        runs: timed runs.
        ratio: median over the rounds of the time as a share of the reference's in that round.
        ratio_low: lower end of the 95 % interval of the ratio.
        ratio_high: upper end of it.
        memory_bytes: peak memory of loading the model and running it once, or None where it was
            not asked for.
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
    memory_bytes: int | None = None

    @property
    def noisy(self) -> bool:
        """Whether the milliseconds are too uncertain: the interval is wider than ±5 %."""
        return _wide(self.median_ms, self.low_ms, self.high_ms)

    @property
    def ratio_noisy(self) -> bool:
        """Whether the ratio is too uncertain: its interval is wider than ±5 %."""
        return _wide(self.ratio, self.ratio_low, self.ratio_high)

    @property
    def verdict(self) -> Verdict:
        """Beside the reference: decided where the whole interval of the ratio is on one side of 1.

        With `ratio_noisy`, "cannot tell" is the machine's fault; without, the two are within a
        few per cent of each other.
        """
        if self.ratio_high < 1:
            return "faster"
        return "slower" if self.ratio_low > 1 else "cannot tell"


def latencies(turns: Mapping[str, ArrayLike]) -> dict[str, Latency]:
    """Latency of each model, in the order given; ratios are to the first.

    Runs within a turn are alike, so that the rounds, not the runs, carry the uncertainty. Ratios
    are taken within a round, before anything is resampled, so that what slowed the whole machine
    down is not in them. Slow spells outlast a round, so more than
    100 rounds are put together to 100 blocks of neighbours, which are resampled as a whole.

    Args:
        turns: seconds of every timed run, `[rounds, runs]`; as many rounds for each model.
    """
    seconds = {name: np.asarray(each, dtype=np.float64) for name, each in turns.items()}
    ms = {name: 1e3 * np.median(each, axis=1) for name, each in seconds.items()}
    first = next(iter(ms.values()))
    picks = _resampled(min(len(first), _BLOCKS))
    return {name: _summary(seconds[name], ms[name], first, picks) for name in ms}


def pooled(windows: Sequence[Latency]) -> Latency:
    """One model's latency over several measurements; intervals from the lowest to the highest end.

    Runs are added up; of the other figures the median counts.
    """

    def middle(field: str) -> float:
        return float(np.median([getattr(window, field) for window in windows]))

    memory = [window.memory_bytes for window in windows if window.memory_bytes is not None]
    return Latency(
        median_ms=middle("median_ms"),
        p10_ms=middle("p10_ms"),
        p90_ms=middle("p90_ms"),
        low_ms=min(window.low_ms for window in windows),
        high_ms=max(window.high_ms for window in windows),
        runs=sum(window.runs for window in windows),
        ratio=middle("ratio"),
        ratio_low=min(window.ratio_low for window in windows),
        ratio_high=max(window.ratio_high for window in windows),
        memory_bytes=max(memory, default=None),
    )


def interval(values: ArrayLike) -> tuple[float, float]:
    """95 % bootstrap interval of the median of some values, one for each round.

    The ends are the 2.5 % and 97.5 % points of the medians of 10,000 resamples, the next further
    out of them. How often that holds the truth stands with `Latency`.
    """
    found = np.asarray(values, dtype=np.float64)
    return _ends(_blocks(found), _resampled(min(len(found), _BLOCKS)))


def _summary(
    seconds: NDArray[Any], ms: NDArray[Any], first: NDArray[Any], picks: NDArray[Any]
) -> Latency:
    times, ratios = _blocks(ms), _blocks(_ratios(ms, first))
    p10, p90 = np.percentile(1e3 * seconds, [10, 90])
    low, high = _ends(times, picks)
    ratio_low, ratio_high = _ends(ratios, picks)
    return Latency(
        median_ms=float(np.median(times)),
        p10_ms=float(p10),
        p90_ms=float(p90),
        low_ms=low,
        high_ms=high,
        runs=seconds.size,
        ratio=float(np.median(ratios)),
        ratio_low=ratio_low,
        ratio_high=ratio_high,
    )


def _blocks(values: NDArray[Any]) -> NDArray[Any]:
    """Medians of at most 100 runs of neighbours."""
    if len(values) <= _BLOCKS:
        return values
    size, longer = divmod(len(values), _BLOCKS)
    cut = longer * (size + 1)  # so many blocks have one value more
    parts = values[:cut].reshape(longer, size + 1), values[cut:].reshape(-1, size)
    return np.concatenate([np.median(part, axis=1) for part in parts])


def _resampled(count: int) -> NDArray[Any]:
    """Which of the sorted values are in the middle of each resample, `[resamples, 2]`.

    Rounds are drawn with replacement; in order of what they hold, the median is in the middle.
    That is the same for all values of a count, and is worked out once for twenty models.
    """
    drawn = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count), dtype=np.int16)
    return np.sort(drawn, axis=1)[:, [(count - 1) // 2, count // 2]]


def _ends(values: NDArray[Any], picks: NDArray[Any]) -> tuple[float, float]:
    medians = np.sort(np.sort(values)[picks].mean(axis=1))
    last = len(medians) - 1
    return float(medians[math.floor(0.025 * last)]), float(medians[math.ceil(0.975 * last)])


def _ratios(values: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """A clock too coarse to see either call says nothing against their being equal."""
    unseen = np.where(values == 0, 1.0, math.inf)
    return np.where(reference > 0, values / np.where(reference > 0, reference, 1), unseen)


def _wide(middle: float, low: float, high: float) -> bool:
    # Written so that an infinite or undefined width counts as wide.
    return not (high - low <= 2 * NOISY * middle)
