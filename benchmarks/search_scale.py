"""What does the search itself cost, on networks of up to 200 layers with 16 options each?

OMP_NUM_THREADS=1 python -m benchmarks.search_scale [--json]

The networks are chains of convolutions whose score is a formula (`benchmarks.chains`), so that
nearly all of the time is the search's own. One of layers, options and buckets is varied while the
others stay, and a power law is fitted. Times are those of the processor, without the scores'.
Memory is the peak of what Python and numpy allocate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.chains import Chain, chain
from benchmarks.support import environment
from compressor.search.kernels import Effects
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.recombine import best_of_each_cost
from compressor.search.settings import Strategy
from compressor.space import Architecture

EVALUATION = 0.1  # seconds that the evaluation of a network takes at least
GOAL = 0.05  # share of it that the search may take

Size: TypeAlias = tuple[int, int, int]
"""Layers, options, buckets."""
AXES = ("layers", "options", "buckets")
TYPICAL: tuple[Size, ...] = ((30, 8, 100), (60, 8, 100), (200, 16, 100), (200, 16, 1000))
# so large that interactions of neighbouring layers are not modelled
GUIDED: dict[str, tuple[Size, ...]] = {
    "layers": tuple((n, 16, 500) for n in (25, 50, 100, 200)),
    "options": tuple((200, n, 500) for n in (6, 8, 12, 16)),
    "buckets": tuple((200, 16, n) for n in (125, 250, 500, 1000)),
}
# as published and without a limit of evaluations, so that these grow too
PUBLISHED: dict[str, tuple[Size, ...]] = {
    "layers": tuple((n, 6, 20) for n in (16, 32, 64, 128)),
    "options": tuple((30, n, 20) for n in (4, 8, 16)),
    "buckets": tuple((30, 6, n) for n in (10, 20, 40, 80)),
}
_UNLIMITED = 10**6
_SHORT = 60  # evaluations of the guided search where sizes are varied


@dataclass(frozen=True)
class Run:
    """One search, or one recombination.

    Attributes:
        what: strategy, or the form of the recombination.
        size: layers, options, buckets.
        evaluations: networks scored; none in a recombination.
        seconds: processor time without that of the scores.
        mebibytes: peak of memory.
    """

    what: str
    size: Size
    evaluations: int
    seconds: float
    mebibytes: float

    @property
    def overhead(self) -> float:
        """Seconds of the search for each evaluation."""
        return self.seconds / max(1, self.evaluations)


def search(strategy: Strategy, size: Size, evaluations: int | None) -> Run:
    """One search; without a number of evaluations, until nothing is untried."""
    problem = chain(*size[:2])
    clock = _Clock(problem)
    start = time.process_time()
    made = _searched(problem, strategy, size, evaluations, clock)
    seconds = time.process_time() - start - clock.seconds
    tracemalloc.start()
    _searched(problem, strategy, size, evaluations, _Clock(problem))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Run(strategy, size, made, seconds, peak / 2**20)


def recombination(size: Size, *, paired: bool, repeats: int = 5) -> Run:
    """The best networks of each cost in the upper tenth, once; the quickest of some."""
    layers, options, buckets = size
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(layers - 1, options, options)) if paired else None
    effects = Effects(rng.normal(size=(layers, options)), pairs)
    costs = rng.random((layers, options)).cumsum(axis=1)
    costs -= costs[:, :1]
    steps = np.rint(2 * buckets * costs / costs[:, -1].sum()).astype(np.int64)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        best_of_each_cost([effects], steps, (buckets * 9 // 10, buckets))
        times.append(time.process_time() - start)
    tracemalloc.start()
    best_of_each_cost([effects], steps, (buckets * 9 // 10, buckets))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    name = "recombination, pairs" if paired else "recombination"
    return Run(name, size, 0, min(times), peak / 2**20)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms; 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(runs: Sequence[Run], axis: str) -> dict[str, float]:
    """How seconds, memory and evaluations grow with the size that the runs vary."""
    sizes = [run.size[AXES.index(axis)] for run in runs]
    found = {
        "seconds": exponent(sizes, [run.seconds for run in runs]),
        "memory": exponent(sizes, [run.mebibytes for run in runs]),
    }
    if len({run.evaluations for run in runs}) > 1:
        found["evaluations"] = exponent(sizes, [run.evaluations for run in runs])
    return found


def main() -> None:
    """Prints tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=200, help="of the searches in full")
    parser.add_argument("--largest", type=int, default=200, help="layers; larger ones are left out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    typical = [
        _told(search(strategy, size, options.evaluations))
        for size in TYPICAL
        if size[0] <= options.largest
        for strategy in ("guided", "published")
    ]
    scans = {
        name: {axis: [s for s in sizes if s[0] <= options.largest] for axis, sizes in plan.items()}
        for name, plan in {"guided": GUIDED, "published": PUBLISHED}.items()
    }
    grown = {
        f"{name}, {axis}": [_told(run(size)) for size in sizes]
        for name, run, plan in (
            ("guided", lambda s: search("guided", s, _SHORT), "guided"),
            ("published", lambda s: search("published", s, None), "published"),
            ("recombination", lambda s: recombination(s, paired=False), "guided"),
            ("recombination, pairs", lambda s: recombination(s, paired=True), "guided"),
        )
        for axis, sizes in scans[plan].items()
        if len(sizes) > 1
    }
    if options.json:
        print(json.dumps(report(typical, grown), indent=1))
    else:
        _print(typical, grown)


def report(typical: Sequence[Run], grown: dict[str, list[Run]]) -> dict[str, object]:
    """Everything as one JSON object."""
    return {
        "goal_seconds": GOAL * EVALUATION,
        "searches": [asdict(run) | {"overhead": run.overhead} for run in typical],
        "growth": {
            name: {"runs": [asdict(run) for run in runs]} | exponents(runs, name.split(", ")[-1])
            for name, runs in grown.items()
        },
        "environment": environment(),
    }


class _Clock:
    """The score of a chain, and the processor time that it takes."""

    def __init__(self, problem: Chain) -> None:
        self._problem = problem
        self.seconds = 0.0

    def __call__(self, architecture: Architecture) -> float:
        start = time.process_time()
        score = self._problem.score(architecture)
        self.seconds += time.process_time() - start
        return score


def _searched(
    problem: Chain, strategy: Strategy, size: Size, evaluations: int | None, score: _Clock
) -> int:
    """Searches, and tells how many networks were scored."""
    everything = None if evaluations else _UNLIMITED
    return layer_nas(
        sizes=problem.space.sizes,
        limits=[problem.limit],
        score=score,
        settings=SearchSettings(
            strategy, buckets=size[2], kept=1, parents=everything, children=everything
        ),
        evaluations=evaluations or _UNLIMITED,
    ).evaluations


def _told(run: Run) -> Run:
    print(f"  {run.what} {run.size} {run.seconds:.2f} s", file=sys.stderr)
    return run


def _print(typical: Sequence[Run], grown: dict[str, list[Run]]) -> None:
    print("search      layers options buckets  scored  for each  of 0.1 s   memory")
    for run in typical:
        layers, options, buckets = run.size
        share = run.overhead / EVALUATION
        print(
            f"{run.what:<12}{layers:5d}{options:8d}{buckets:8d}{run.evaluations:8d}"
            f"{1e3 * run.overhead:7.2f} ms{share:9.1%}{run.mebibytes:7.1f} MiB"
        )
    print("\nexponents of growth (1 is linear), from the smallest to the largest")
    for name, runs in grown.items():
        axis = name.split(", ")[-1]
        place = AXES.index(axis)
        found = exponents(runs, axis)
        first, last = runs[0], runs[-1]
        line = f"{name:<32}{first.size[place]:5d} to {last.size[place]:4d}:"
        line += f" time {found['seconds']:.2f}"
        line += f" ({1e3 * first.seconds:.1f} to {1e3 * last.seconds:.1f} ms)"
        line += f", memory {found['memory']:.2f}"
        if not math.isnan(count := found.get("evaluations", math.nan)):
            shares = [run.evaluations / math.prod(run.size) for run in (first, last)]
            line += f", scored {count:.2f} ({first.evaluations} to {last.evaluations}"
            line += f", {shares[0]:.0%} to {shares[1]:.0%} of H · |S| · L)"
        print(line)


if __name__ == "__main__":
    main()
