"""torch-pruning on one network of the zoo: `python -m benchmarks.zoo.peer NAME`.

Prunes a fresh network as its README does, with all layers free but those that make the outputs, and
runs it. `ok` is a network that runs to outputs of the old shapes: whether it computes what the
masked original does is not looked at, since its cuts are no architectures of a space of ours.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.zoo.worker import report
from compressor.network.counting import count

_SHARE = 0.3  # of the channels, which leaves about half of the MAdds: 0.7 squared


def main(name: str) -> None:
    """Prints the outcome."""
    report(name, _fill)


def _fill(found: dict[str, Any], model: nn.Module, example: tuple[Tensor, ...]) -> None:
    whole = count(model, example).madds
    before = _shapes(model, example)
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=_SHARE,
        ignored_layers=_last(model, before),
    )
    pruner.step()
    after = _shapes(model, example)
    found["madds_ratio"] = count(model, example).madds / whole
    if after != before:
        found["reason"] = f"outputs of other shapes: {before} became {after}"[:200]


def _shapes(model: nn.Module, example: tuple[Tensor, ...]) -> list[list[int]]:
    with torch.no_grad():
        return [list(t.shape) for t in tree_leaves(model(*example)) if isinstance(t, Tensor)]


def _last(model: nn.Module, outputs: list[list[int]]) -> list[nn.Module]:
    """Layers as wide as an output, as its README has them left out."""
    widths = {size for shape in outputs for size in shape[1:]}
    return [
        m
        for m in model.modules()
        if (isinstance(m, nn.Linear) and m.out_features in widths)
        or (isinstance(m, nn.Conv2d) and m.out_channels in widths)
    ]


if __name__ == "__main__":
    main(sys.argv[1])
