"""torch-pruning: the importance of a group's weights, cut in one step.

`tp.pruner.BasePruner` (which `MetaPruner` is another name of) with `GroupMagnitudeImportance`,
both with their defaults. It cuts a share of the channels, not of the MAdds, so that share is
bisected.

Its dependency graph takes a channel that passes `functional.pad` for the one of the same number
behind it, so that the shortcuts of the CIFAR ResNets are cut wrongly: most ratios give a network
that runs and is nearly random. So each network is made twice: with all layers but the last free,
and with only those free that `compressor` has proved can be cut. The better one on the search
images counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch_pruning as tp
from torch import nn

from benchmarks.peers.protocol import Request
from benchmarks.peers.target import Reached, reach
from benchmarks.peers.task import Effort, Meter, Product, Task
from compressor.coupling import Role
from compressor.run.reading import read_network
from compressor.score.evaluate import recalibrate
from compressor.score.judge import top1

_Ignored = Callable[[nn.Module], list[nn.Module]]


@dataclass(frozen=True)
class _Cut:
    model: nn.Module
    effort: Effort


def uniform(task: Task, request: Request) -> Product:
    """The same share of channels from every layer."""
    del request
    return _better(task, everywhere=False)


def over_all_layers(task: Task, request: Request) -> Product:
    """The least important channels of the whole network (`global_pruning=True`)."""
    del request
    return _better(task, everywhere=True)


def _better(task: Task, *, everywhere: bool) -> Product:
    """Freely and restricted; the better one after recalibration on the search images."""
    proved = _producers(task)
    choices: dict[str, _Ignored] = {
        "all layers but the last": lambda model: _weighted(model)[-1:],
        "only the layers that compressor proves": lambda model: [
            m for m in _weighted(model) if m not in {model.get_submodule(p) for p in proved}
        ],
    }
    notes: list[str] = []
    made: dict[str, Reached[_Cut]] = {}
    for name, ignored in choices.items():
        try:
            made[name] = reach(partial(_cut, task, ignored, everywhere), task.target)
        except Exception as error:  # noqa: BLE001  (a cut that cannot run fails in any way)
            notes.append(f"{name} free: {type(error).__name__}: {str(error)[:200]}")
    # Scored only now: judging takes more memory than cutting, which is what is reported.
    scores = {name: _score(task, reached) for name, reached in made.items()}
    if not scores:
        raise RuntimeError("torch-pruning gave no network that runs: " + "; ".join(notes))
    best = max(scores, key=lambda name: scores[name])
    notes += [f"{n} free: {100 * s:.2f} % on the search images" for n, s in scores.items()]
    return Product(
        made[best].product.model,
        made[best].product.effort,
        attempts=made[best].attempts,
        notes=(f"taken with {best} free; with BatchNorm recalibrated, {'; '.join(notes)}",),
    )


def _cut(task: Task, ignored: _Ignored, everywhere: bool, share: float) -> tuple[_Cut, float]:
    """A network with about `share` of the channels; kept share and MAdds grow together."""
    model = copy.deepcopy(task.model)
    meter = Meter()
    pruner = tp.pruner.BasePruner(
        model,
        task.example,
        importance=tp.importance.GroupMagnitudeImportance(),
        global_pruning=everywhere,
        pruning_ratio=1 - share,
        ignored_layers=ignored(model),
    )
    pruner.step()
    return _Cut(model, meter.read()), task.share(model)


def _score(task: Task, reached: Reached[_Cut]) -> float:
    model = copy.deepcopy(reached.product.model)
    recalibrate(model, task.calibration)
    return top1(model, task.search)


def _producers(task: Task) -> set[str]:
    """Paths of the modules whose outputs `compressor` has proved can be cut."""
    space = read_network(task.model, task.example).space
    return {
        coupling.tensor.rpartition(".")[0]
        for layer in space.layers
        if layer.group is not None
        for coupling in layer.group.couplings
        if coupling.role is Role.PRODUCED
    }


def _weighted(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
