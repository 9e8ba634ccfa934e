"""Candidates scored per second: assembled from the library, against copied and cut anew.

    python -m benchmarks.scoring_speed cifar10_resnet56 --candidates 60 --json speed.json

Both ways score candidates of one search at half the MAdds on the same validation images.
"Assembled" is what `compressor compress` does: pieces from the library, cut consumers refitted on
64 images, and images until a candidate is clearly worse than the best one so far. "Anew" copies
the network, cuts it with torch-pruning, and shows it all images, for some of the same candidates.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.prepared import prepare
from benchmarks.support import environment
from compressor.refit.library import LayerLibrary
from compressor.score.judge import Judge, make_judge
from compressor.score.scorer import Recipes, Scorer
from compressor.search.layer_nas import layer_nas
from compressor.space import Architecture, SearchSpace


def require_channels(space: SearchSpace) -> None:
    """Refuses what `cut_anew` would not cut alike: kernels, and units of several channels.

    Raises:
        SystemExit: both ways would not score the same networks.
    """
    for layer in space.layers:
        if layer.kernel is not None:
            why = "decides a kernel, which torch-pruning does not crop"
        elif layer.group is not None and layer.group.per_unit != 1:
            why = f"cuts units of {layer.group.per_unit} channels, not single ones"
        else:
            continue
        raise SystemExit(f"both ways must cut alike, but layer {layer.name!r} {why}")


def cut_anew(
    model: nn.Module, space: SearchSpace, architecture: Architecture, example: torch.Tensor
) -> nn.Module:
    """A deep copy, cut by torch-pruning to the same channels; see `require_channels`."""
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(small, example)
        for layer, choice in space.choices(architecture):
            gone = layer.group.removed(choice.channels) if layer.group and choice.channels else []
            if gone:
                root = modules[layer.name]
                graph.get_pruning_group(root, tp.prune_conv_out_channels, sorted(gone)).prune()
    return small.eval()


def timed_anew(
    library: LayerLibrary, judge: Judge, networks: list[Architecture], example: torch.Tensor
) -> float:
    """Seconds to score all networks, each cut from a copy."""
    model = copy.deepcopy(library.model).requires_grad_(True)  # torch-pruning traces gradients
    start = time.perf_counter()
    for architecture in networks:
        judge(cut_anew(model, library.space, architecture, example))
    return time.perf_counter() - start


class Timed:
    """A function that keeps what it was asked and how long it took."""

    def __init__(self, function: Callable[[Architecture], Any]) -> None:
        self.asked: list[Architecture] = []
        self.seconds = 0.0
        self._function = function

    def __call__(self, architecture: Architecture) -> Any:
        """What the function says."""
        start = time.perf_counter()
        try:
            return self._function(architecture)
        finally:
            self.seconds += time.perf_counter() - start
            self.asked.append(architecture)


def measured(name: str, candidates: int, anew: int, score: str, seed: int) -> dict[str, object]:
    """Both ways on one sample."""
    prepared = prepare(name, "madds=50%")
    library, limits = prepared.library, prepared.limits
    require_channels(library.space)
    judge = make_judge(score, prepared.validation, prepared.model)
    scorer = Scorer(
        library, prepared.example, prepared.calibration, judge, Recipes(),
        eligible=lambda a: all(limit.cost(a) <= limit.high for limit in limits),
    )  # fmt: skip
    guide = scorer.guide()
    ours, probes = Timed(scorer), Timed(guide.probe or (lambda _: None))
    layer_nas(
        sizes=library.space.sizes, limits=limits, score=ours, evaluations=candidates, seed=seed,
        hints=guide.hints, probe=probes if guide.probe else None,
    )  # fmt: skip
    some = ours.asked[:: max(1, len(ours.asked) // anew)][:anew]
    theirs = timed_anew(library, judge, some, prepared.example[0]) / len(some)
    each = ours.seconds / len(ours.asked)
    images = sum(len(y) for _, y in prepared.validation)
    return {
        "sample": name,
        "score": score,
        "candidates": len(ours.asked),
        "images": images,
        "images_shown": scorer.images / len(ours.asked),
        "assembled_seconds": each,
        "anew_seconds": theirs,
        "anew_candidates": len(some),
        "ratio": theirs / each,
        "probes": len(probes.asked),
        "probe_seconds": probes.seconds / max(1, len(probes.asked)),
        "ratio_with_probes": theirs * len(ours.asked) / (ours.seconds + probes.seconds),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "environment": environment(),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--anew", type=int, default=8, help="candidates that are cut anew as well")
    parser.add_argument("--score", default="agreement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measured(given.sample, given.candidates, given.anew, given.score, given.seed)
    text = json.dumps(found, indent=2)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
