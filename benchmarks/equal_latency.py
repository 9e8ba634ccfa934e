"""Ours beside torch-pruning's rounded widths at one measured latency: same refit, same images.

    python -m benchmarks.equal_latency imagenet_mobilenet_v2 --budget latency=50% --evaluations 30

Ours is `compressor compress` with a latency budget. torch-pruning (`BasePruner`, uniform, one step,
`GroupMagnitudeImportance`) cuts with widths rounded to 8 and to 16; its share of channels is
bisected until the network is as fast as ours, measured in ONNX Runtime in turns with the original.
What it kept is then refitted exactly as ours is. At the end all networks are timed in turns in one
run, and judged on the images of `test_data()`, which decide nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch_pruning as tp
from torch import nn

import compressor
from benchmarks.prepared import Prepared, prepare
from benchmarks.support import environment
from compressor.coupling import Role
from compressor.deploy.export import export_base
from compressor.deploy.slicing import BaseGraph
from compressor.device.measure import Settings, measure
from compressor.device.timing import Schedule
from compressor.network.counting import count
from compressor.score.judge import make_judge, top1
from compressor.score.scorer import Recipes, Scorer
from compressor.space import Architecture, SearchSpace

_OUTPUTS = (tp.prune_conv_out_channels, tp.prune_depthwise_conv_out_channels)
_MADE = (Role.PRODUCED, Role.THROUGH)
_STEPS = 8  # of the bisection
_QUICK, _FINAL = Schedule(rounds=12, seconds=3.0), Schedule(rounds=30, seconds=20.0)


@dataclass(frozen=True)
class Network:
    """One that is compared.

    Attributes:
        model: refitted.
        graph: it as ONNX.
        madds: share of the original's.
        score: agreement with the original on the search images.
    """

    model: nn.Module
    graph: bytes
    madds: float
    score: float


def removed_by(model: nn.Module, example: Any, share: float, round_to: int) -> dict[str, set[int]]:
    """Output channels that torch-pruning removes, for each weight that makes them.

    Raises:
        ValueError: a weight would be cut twice.
    """
    small = copy.deepcopy(model).requires_grad_(True)
    names = {module: name for name, module in small.named_modules()}
    pruner = tp.pruner.BasePruner(
        small, example, importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=1 - share, round_to=round_to,
        ignored_layers=[m for m in small.modules() if isinstance(m, nn.Linear)],
    )  # fmt: skip
    removed: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):
        for member, positions in group:
            module = member.target.module
            if member.handler in _OUTPUTS:
                key = f"{names[module]}.weight"
                if removed.setdefault(key, set(positions)) != set(positions):
                    raise ValueError(f"torch-pruning cuts {key} twice")
        group.prune()
    return removed


def as_space(
    space: SearchSpace, removed: Mapping[str, set[int]]
) -> tuple[SearchSpace, Architecture]:
    """The space whose first option of each layer keeps what is not removed, and its network.

    Raises:
        ValueError: the weights of one layer are cut differently, or one is cut that no layer cuts.
    """
    known: set[str] = set()
    layers = []
    for layer in space.layers:
        full = layer.choices[-1]
        if layer.group is None:  # only a kernel, which torch-pruning does not crop
            layers.append(replace(layer, choices=(full,)))
            continue
        rows = {c.tensor for c in layer.group.couplings if c.dim == 0 and c.role in _MADE}
        cuts = {frozenset(removed[t]) for t in rows & removed.keys()} or {frozenset[int]()}
        if len(cuts) > 1:
            raise ValueError(f"torch-pruning cuts the weights of {layer.name} differently")
        known |= rows
        gone = sorted(cuts.pop())
        kept = [i for i in range(layer.group.width) if i not in gone]
        group = replace(layer.group, order=(*kept, *gone))
        choices = (replace(full, channels=len(kept)), full) if gone else (full,)
        layers.append(replace(layer, group=group, choices=choices))
    unknown = {t for t, gone in removed.items() if gone} - known
    if unknown:
        raise ValueError(f"torch-pruning cuts what no layer of the space cuts: {sorted(unknown)}")
    return replace(space, layers=tuple(layers)), (0,) * len(layers)


class Rival:
    """torch-pruning with one rounding, on one sample."""

    def __init__(self, prepared: Prepared, graph: BaseGraph, round_to: int, threads: int) -> None:
        self._prepared, self._graph, self._round_to = prepared, graph, round_to
        self._settings = Settings(threads=threads, schedule=_QUICK)

    def as_fast_as(self, ratio: float) -> Network:
        """The network of the share of channels that comes closest to a share of the time."""
        low, high = 0.1, 1.0
        found: list[tuple[float, SearchSpace, Architecture]] = []
        for _ in range(_STEPS):
            share = (low + high) / 2
            space, architecture = self._cut(share)
            got = self._ratio(space, architecture)
            print(
                f"  round to {self._round_to}: share {share:.3f}, time {got:.3f}", file=sys.stderr
            )
            found.append((abs(got - ratio), space, architecture))
            low, high = (share, high) if got < ratio else (low, share)
        _, space, architecture = min(found, key=lambda f: f[0])
        return self._refitted(space, architecture)

    def _cut(self, share: float) -> tuple[SearchSpace, Architecture]:
        model, example = self._prepared.model, self._prepared.example
        removed = removed_by(model, example[0], share, self._round_to)
        return as_space(self._prepared.library.space, removed)

    def _ratio(self, space: SearchSpace, architecture: Architecture) -> float:
        original = self._prepared.library.space
        models = {
            "original": self._graph.slice(original, original.original),
            "cut": self._graph.slice(space, architecture),
        }
        return measure(models, self._settings)["cut"].ratio

    def _refitted(self, space: SearchSpace, architecture: Architecture) -> Network:
        prepared = self._prepared
        library = replace(prepared.library, space=space)
        judge = make_judge("agreement", prepared.validation, prepared.model)
        scorer = Scorer(library, prepared.example, prepared.calibration, judge, Recipes())
        model, score = scorer.finish(architecture)
        madds, whole = (count(m, prepared.example).madds for m in (model, prepared.model))
        return Network(model, self._graph.slice(space, architecture), madds / whole, score)


def ours(prepared: Prepared, budget: str, evaluations: int, seed: int, threads: int) -> Network:
    """What `compressor compress` finds."""
    module = prepared.module
    with tempfile.TemporaryDirectory() as folder:
        result = compressor.compress(
            module.build_model(), module.example_input(), budget=budget,
            calibration=module.calibration_data(), validation=module.validation_data(),
            out=Path(folder) / "run", evaluations=evaluations, seed=seed, score="agreement",
            threads=threads,
        )  # fmt: skip
        graph = result.onnx_path.read_bytes()
    best, base = result.summary.best, result.summary.base
    return Network(result.model, graph, best.madds / base.madds, best.score)


def compared(
    name: str, budget: str, evaluations: int, seed: int, threads: int
) -> dict[str, object]:
    """All networks of one sample at the latency of ours."""
    prepared = prepare(name, "madds=50%")
    base = export_base(prepared.model, prepared.example)
    space = prepared.library.space
    original = base.slice(space, space.original)
    networks = {"ours": ours(prepared, budget, evaluations, seed, threads)}
    settings = Settings(threads=threads, schedule=_QUICK)
    ratio = measure({"original": original, "ours": networks["ours"].graph}, settings)["ours"].ratio
    for round_to in (8, 16):
        rival = Rival(prepared, base, round_to, threads)
        networks[f"torch-pruning, round to {round_to}"] = rival.as_fast_as(ratio)
    graphs = {"original": original} | {n: network.graph for n, network in networks.items()}
    latency = measure(graphs, Settings(threads=threads, schedule=_FINAL))
    rows = [
        {
            "network": n,
            "ratio": latency[n].ratio,
            "interval": [latency[n].ratio_low, latency[n].ratio_high],
            "madds": network.madds,
            "search_score": network.score,
            "search_top1": 100 * top1(network.model, prepared.validation),
            "test": 100 * top1(network.model, prepared.module.test_data()),
        }
        for n, network in networks.items()
    ]
    return {
        "sample": name, "budget": budget, "evaluations": evaluations, "seed": seed,
        "threads": threads, "original_ms": latency["original"].median_ms, "networks": rows,
        "environment": environment(),
    }  # fmt: skip


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample", nargs="?", default="imagenet_mobilenet_v2")
    parser.add_argument("--budget", default="latency=50%")
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = compared(given.sample, given.budget, given.evaluations, given.seed, given.threads)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
