"""How well few images tell what single steps from a network cost, at several temperatures.

    python -m benchmarks.temperatures cifar10_resnet56 --budget madds=30%

Around the best network by the sensitivities, every neighbour that differs in one layer by one step
is refitted as a candidate is. What each costs on few search images, as a divergence from the
original at some temperature, is correlated with what it costs on all other search images, as a
divergence at temperature 1; mean over disjoint sets of few images. "accuracy" correlates the
divergence on half of the images with top-1 on the other half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.prepared import hinted, prepare
from benchmarks.support import environment
from compressor.network.counting import evaluating, forward
from compressor.network.data import Batches, split
from compressor.refit.assembly import Assembler
from compressor.refit.library import LayerLibrary
from compressor.refit.sequence import Refitter
from compressor.score.few import few_images
from compressor.score.judge import Judge, make_judge
from compressor.score.probe import beside
from compressor.score.sensitivity import with_option
from compressor.score.trials import Trials
from compressor.space import Architecture

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 8.0)
COUNTS = (128, 256)


def neighbours(library: LayerLibrary, base: Architecture) -> list[Architecture]:
    """The base, and all networks that differ from it in one layer by one step."""
    layers = enumerate(library.space.layers)
    pairs = [(i, o) for i, layer in layers for o in beside(layer.choices, base[i])]
    return [base, *(with_option(base, i, o) for i, o in pairs)]


def values(judges: Sequence[Judge], candidate: nn.Module) -> Tensor:
    """What each judge says of each image, `[judges, N]`."""
    found: list[list[Tensor]] = [[] for _ in judges]
    with evaluating(candidate):
        for number, inputs, targets in judges[0].inputs(torch.device("cpu")):
            outputs = forward(candidate, inputs)
            for judge, row in zip(judges, found, strict=True):
                row.append(judge.values(number, outputs, targets))
    return torch.stack([torch.cat(row) for row in found])


def correlation(few: Tensor, all_others: Tensor, count: int) -> float:
    """Mean correlation of the costs on `count` images with those on the others.

    Args:
        few: values at some temperature, [networks, N]; the first network is the base.
        all_others: values at temperature 1, alike.
        count: of few images.
    """
    found = []
    for first in range(0, few.shape[1] - count + 1, count):
        here = torch.zeros(few.shape[1], dtype=torch.bool)
        here[first : first + count] = True
        costs = torch.stack([few[:, here].mean(1), all_others[:, ~here].mean(1)])
        found.append(float(torch.corrcoef(costs[:, 1:] - costs[:, :1])[0, 1]))
    return sum(found) / len(found)


def with_accuracy(some: Tensor, right: Tensor) -> float:
    """Mean correlation of values on half of the images with top-1 on the other half.

    Args:
        some: values at some temperature, [networks, N].
        right: 1 where a network is right, alike.
    """
    found = []
    for seed in range(20):
        order = torch.randperm(some.shape[1], generator=torch.Generator().manual_seed(seed))
        one, other = order.chunk(2)
        pair = torch.stack([some[:, one].mean(1), right[:, other].mean(1)])
        found.append(float(torch.corrcoef(pair)[0, 1]))
    return sum(found) / len(found)


def measured(name: str, budget: str, images: int) -> dict[str, object]:
    """All correlations on one sample."""
    prepared = prepare(name, budget)
    model, library = prepared.model, prepared.library
    few = few_images(prepared.calibration)
    refitter = Refitter(model, library.space, prepared.example, few, remember=True)
    assembler = Assembler(model, library.space, library.consumers)
    trials = Trials(model, assembler, refitter, lambda _: 0.0, lambda _: True)
    shown = _first(prepared.validation, images)
    networks = neighbours(library, hinted(prepared))
    soft = [make_judge("agreement", shown, model, t) for t in TEMPERATURES]
    judges = [Judge("top1", shown), *soft]
    right, *found_at = torch.stack([values(judges, trials.network(n)) for n in networks], dim=1)
    table = dict(zip(TEMPERATURES, found_at, strict=True))
    rows = {
        f"{temperature:g}": {
            **{f"{n} images": correlation(table[temperature], table[1.0], n) for n in COUNTS},
            "accuracy": with_accuracy(table[temperature], right),
        }
        for temperature in TEMPERATURES
    }
    return {
        "sample": name, "budget": budget, "neighbours": len(networks) - 1, "images": images,
        "correlation": rows, "environment": environment(),
    }  # fmt: skip


def _first(batches: Batches, images: int) -> list[tuple[Tensor, Tensor]]:
    """The first inputs and labels, 50 at a time."""
    pairs = [split(batch) for batch in batches]
    x = torch.cat([inputs[0] for inputs, _ in pairs])[:images]
    y = torch.cat([targets for _, targets in pairs if targets is not None])[:images]
    return list(zip(x.split(50), y.split(50), strict=True))


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--budget", default="madds=50%")
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    print(json.dumps(measured(given.sample, given.budget, given.images), indent=1))


if __name__ == "__main__":
    main()
