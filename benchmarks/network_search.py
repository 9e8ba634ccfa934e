"""Ways to spend the evaluations on a real network, under one budget.

    python -m benchmarks.network_search cifar10_resnet20 --evaluations 60 --seeds 5

Every method scores candidates alike: assembled, refitted on 128 images, judged by their agreement
with the original on the same search images, none given up early. Reported is the score of the
network that is picked. "guided" starts from what single choices cost alone and probes the best
network so far, as `compressor compress` does; "unaided" is the same strategy without both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from benchmarks.prepared import prepare
from benchmarks.support import environment
from compressor.network.data import split
from compressor.score.judge import make_judge
from compressor.score.scorer import Guide, Recipes, Scorer
from compressor.search.baselines import random_search, regularised_evolution
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import SearchResult
from compressor.space import Architecture

Method: TypeAlias = Callable[[Mapping[str, Any], Guide], SearchResult]

METHODS: Mapping[str, Method] = {
    "guided": lambda problem, guide: layer_nas(**problem, hints=guide.hints, probe=guide.probe),
    "unaided": lambda problem, _: layer_nas(**problem),
    "random": lambda problem, _: random_search(**problem),
    "evolution": lambda problem, _: regularised_evolution(**problem),
    "published": lambda problem, _: layer_nas(**problem, settings=SearchSettings("published")),
}


class Scores:
    """The score of each network, worked out once."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: dict[Architecture, float] = {}

    def __call__(self, architecture: Architecture) -> float:
        """Higher is better."""
        if architecture not in self._known:
            self._known[architecture] = self._scorer(architecture)
        return self._known[architecture]


def measured(
    name: str, budget: str, evaluations: int, seeds: int, images: int, methods: Sequence[str]
) -> dict[str, object]:
    """The picks of all methods and seeds; "guided" is always among them."""
    prepared = prepare(name, budget)
    library = prepared.library
    whole = torch.cat([split(batch)[0][0] for batch in prepared.validation])
    judge = make_judge("agreement", list(whole[:images].split(50)), prepared.model)
    # as a plain function: every candidate sees all images
    scorer = Scorer(library, prepared.example, prepared.calibration, judge.__call__, Recipes())
    guide, score = scorer.guide(), Scores(scorer)
    problem = {
        "sizes": library.space.sizes, "limits": prepared.limits,
        "score": score, "evaluations": evaluations,
    }  # fmt: skip
    methods = list(dict.fromkeys(["guided", *methods]))
    picks: dict[str, list[float]] = {method: [] for method in methods}
    for method in methods:
        for seed in range(seeds):
            start = time.perf_counter()
            picks[method].append(METHODS[method]({**problem, "seed": seed}, guide).best.score)
            seconds = time.perf_counter() - start
            print(f"  {method} {seed}: {picks[method][-1]:.4f}, {seconds:.0f} s", file=sys.stderr)
    return {
        "sample": name, "budget": budget, "evaluations": evaluations, "images": images,
        "picks": picks, "summary": {method: _summary(found) for method, found in picks.items()},
        "ahead": {m: _ahead(picks["guided"], picks[m]) for m in methods if m != "guided"},
        "environment": environment(),
    }  # fmt: skip


def _summary(scores: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(scores), "standard_error": _error(scores)}


def _error(scores: list[float]) -> float:
    return statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0


def _ahead(one: list[float], other: list[float]) -> float:
    """Difference of the means in standard errors of that difference."""
    error = (_error(one) ** 2 + _error(other) ** 2) ** 0.5
    gap = statistics.mean(one) - statistics.mean(other)
    return gap / error if error else float("inf" if gap > 0 else "-inf")


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--budget", default="madds=50%")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    found = measured(
        given.sample, given.budget, given.evaluations, given.seeds, given.images, given.methods
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
