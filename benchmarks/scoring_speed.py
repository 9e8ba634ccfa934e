"""Candidates scored per second: assembled from the library, against copied and cut anew.

    python -m benchmarks.scoring_speed cifar10_resnet56 --candidates 20 --json speed.json

Both ways score the same random architectures at half the MAdds on the same validation images.
"Anew" copies the network, cuts it with torch-pruning, and shows it all images. "Assembled" is what
`compressor compress` does: pieces from the library, cut consumers refitted on 128 images, and
images until a candidate is clearly worse than the best one so far.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.support import environment, sample
from compressor.assembly import Assembler
from compressor.budget import parse_budgets
from compressor.judge import Judge, make_judge
from compressor.library import LayerLibrary, make_library
from compressor.limits import resolve_budgets
from compressor.reach import Reach
from compressor.reading import read_network
from compressor.refit import Refitter
from compressor.space import Architecture, SearchSpace
from compressor.trials import Trials, few_images


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


def timed_assembled(trials: Trials, networks: list[Architecture]) -> float:
    """Seconds to score all networks, assembled."""
    start = time.perf_counter()
    for architecture in networks:
        trials(architecture)
    return time.perf_counter() - start


def measured(name: str, candidates: int, score: str, seed: int) -> dict[str, object]:
    """Both ways on one sample."""
    module = sample(name)
    model, example = module.build_model().requires_grad_(False), module.example_input()
    reading = read_network(model, (example,), "generic")
    require_channels(reading.space)
    calibration = module.calibration_data()
    library = make_library(model, reading.space, (example,), calibration)
    judge = make_judge(score, list(module.validation_data()), model)
    costs = {"madds": reading.madds}
    budgets = resolve_budgets(parse_budgets("madds=50%"), costs, reading.space.original)
    limits = [budget.limit() for budget in budgets]
    reach = Reach(reading.space.sizes, limits, 0.97)
    draws = random.Random(seed)  # noqa: S311  (a reproducible sample)
    networks = [n for _ in range(candidates) if (n := reach.random_network(draws)) is not None]
    assembler = Assembler(model, library.space, library.consumers)
    refitter = Refitter(model, library.space, (example,), few_images(calibration), remember=True)
    trials = Trials(model, assembler, refitter, judge, lambda _: True)
    trials(reach.witness)  # both ways start with what is done once behind them
    trials.images = 0
    ours = timed_assembled(trials, networks)
    theirs = timed_anew(library, judge, networks, example)
    return {
        "sample": name,
        "score": score,
        "candidates": len(networks),
        "images": sum(len(y) for _, y in module.validation_data()),
        "assembled_per_second": len(networks) / ours,
        "anew_per_second": len(networks) / theirs,
        "ratio": theirs / ours,
        "images_shown": trials.images,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "environment": environment(),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--score", default="agreement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measured(given.sample, given.candidates, given.score, given.seed)
    text = json.dumps(found, indent=2)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
