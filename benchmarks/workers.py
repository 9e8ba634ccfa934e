"""Evaluations per second of one search, with several workers and with one.

    python -m benchmarks.workers cifar10_resnet20 --workers 2 --json workers.json

The same search each time: half the MAdds, the same seed and batch size, probes included, one thread
for each process. One worker is this process; more are Ray's. They take turns, and the median of
each counts. Starting Ray and sending the network is timed apart. That all come to the same scores
is checked. What other programs took of the cores meanwhile is told: where it is much, the ratio
says more about them than about us, since two busy processes get twice the time of one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.prepared import Prepared, prepare
from benchmarks.support import environment
from compressor.progress import silent
from compressor.score.judge import make_judge
from compressor.score.rounds import Alone, Crew, Rounds
from compressor.score.scorer import Guide, Recipes, Scorer
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.space import Architecture
from compressor.workers.crew import Staff, hired


@dataclass(frozen=True)
class Run:
    """One search: its time, its scores, and the cores that others and we kept busy meanwhile."""

    seconds: float
    starting: float
    scores: tuple[tuple[Architecture, float], ...]
    others: float
    own: float


def searched(prepared: Prepared, workers: int, batch: int, evaluations: int, score: str) -> Run:
    """The search, by so many workers."""
    limits = prepared.limits

    def eligible(architecture: Architecture) -> bool:
        return all(limit.cost(architecture) <= limit.high for limit in limits)

    judge = make_judge(score, prepared.validation, prepared.model)
    library, example = prepared.library, prepared.example
    scorer = Scorer(library, example, prepared.calibration, judge, Recipes(), eligible=eligible)
    guide = scorer.guide()
    began = time.perf_counter()
    with _crew(scorer, guide, workers) as crew:
        # The first answers wait for the workers, which load on their own.
        list(crew.answers([library.space.original] * workers, None))
        starting = time.perf_counter() - began
        rounds = Rounds(crew, scorer, eligible, lambda _: None, {})
        busy, own, start = _busy(), _own(), time.perf_counter()
        result = layer_nas(
            sizes=library.space.sizes, limits=limits, score=scorer, evaluations=evaluations,
            settings=SearchSettings(batch=batch), hints=guide.hints,
            probe=crew.probe if guide.probe else None, executor=rounds, on_ask=rounds.ask,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        ours = (_own() - own) / seconds
        others = (_busy() - busy) / seconds - ours
    scores = tuple((c.architecture, c.score) for c in result.scored)
    return Run(seconds, starting, scores, others, ours)


@contextlib.contextmanager
def _crew(scorer: Scorer, guide: Guide, workers: int) -> Iterator[Crew]:
    if workers == 1:
        yield Alone(scorer, guide.probe)
        return
    with hired(scorer, Staff(workers), silent) as crew:
        yield crew


def measured(
    name: str, workers: int, batch: int, evaluations: int, repeats: int
) -> dict[str, object]:
    """All runs, in turns."""
    prepared = prepare(name, "madds=50%")
    runs = defaultdict(list)
    for _ in range(repeats):
        for count in (1, workers):
            run = searched(prepared, count, batch, evaluations, "agreement")
            runs[count].append(run)
            print(
                f"{count} workers: {evaluations / run.seconds:.3f} evaluations/s "
                f"(started in {run.starting:.1f} s; cores: {run.own:.2f} ours, "
                f"{run.others:.2f} others)",
                flush=True,
            )
    medians = {count: statistics.median(r.seconds for r in found) for count, found in runs.items()}
    return {
        "sample": name,
        "evaluations": evaluations,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "evaluations_per_second": {n: evaluations / seconds for n, seconds in medians.items()},
        "ratio": medians[1] / medians[workers],
        "ratios": [a.seconds / b.seconds for a, b in zip(runs[1], runs[workers], strict=True)],
        "others_cores": {n: [run.others for run in found] for n, found in runs.items()},
        "own_cores": {n: [run.own for run in found] for n, found in runs.items()},
        "starting_seconds": {n: [run.starting for run in found] for n, found in runs.items()},
        "same_scores": len({run.scores for found in runs.values() for run in found}) == 1,
        "environment": environment(),
    }


def _busy() -> float:
    """Seconds that the cores were busy since the machine started, all together."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of processor time of this process and of all that descend from it."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            seconds[int(path.parent.name)] = sum(map(int, fields[11:15]))
    family, found = {os.getpid()}, 1
    while found:
        new = {child for child, parent in parents.items() if parent in family} - family
        family, found = family | new, len(new)
    return sum(seconds.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, help="as many as workers unless given")
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    batch = given.batch or given.workers
    found = measured(given.sample, given.workers, batch, given.evaluations, given.repeats)
    text = json.dumps(found, indent=2)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
