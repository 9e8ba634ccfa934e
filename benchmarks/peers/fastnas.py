"""NVIDIA ModelOpt's FastNAS, with what it needs to do well on a small network.

It halves an interval of how much each layer alone may cost in score; the scores of all layers and
widths are taken first and are nearly all of its time. Three things are set:

- Widths are multiples of 8, as ours; its default of 32 leaves a layer of 32 channels no choice.
- The calibration images come in 50 batches. It recalibrates BatchNorm before each score from a
  queue of 50 batches, and with a warning leaves it as it was while the queue is not full. With
  larger batches, as anybody would hand over a thousand images, it is not; that is the second
  method, because scoring without recalibration may still choose better.
- The scores are kept in a checkpoint, so that asking for other MAdds takes no new scores.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import modelopt.torch.prune as mtp
import torch
from modelopt.torch.prune.fastnas import FastNASConfig
from torch import Tensor, nn

from benchmarks.peers.protocol import Request
from benchmarks.peers.target import reach
from benchmarks.peers.task import Effort, Meter, Product, Scores, Task

_QUEUE = 50  # batches; ModelOpt's own constant
_DIVISOR = 8


def calibrated(task: Task, request: Request) -> Product:
    """BatchNorm is recalibrated before each score."""
    del request
    images = torch.cat(list(task.calibration))
    return _searched(task, images.tensor_split(_QUEUE))


def large_batches(task: Task, request: Request) -> Product:
    """The batches of the sample; each score is taken with the original's BatchNorm."""
    del request
    return _searched(task, task.calibration)


def _searched(task: Task, batches: Sequence[Tensor]) -> Product:
    """One search, then as many choices from its scores as the MAdds take."""
    scores = Scores(task.search)
    efforts: list[Effort] = []
    calls: list[int] = []
    with tempfile.TemporaryDirectory() as folder:

        def build(share: float) -> tuple[nn.Module, float]:
            meter = Meter()
            model = _pruned(task, share, batches, scores, Path(folder) / "scores.pth")
            efforts.append(meter.read())
            calls.append(scores.calls)
            return model, task.share(model)

        reached = reach(build, task.target)
    return Product(
        reached.product,
        efforts[0],  # the only one that scores; whoever knew what to ask for would stop here
        calls[0],
        attempts=reached.attempts,
        notes=(
            f"asked for {reached.attempts[reached.index].requested:.2%} of its own FLOPs; its "
            "time is that of the first search, the further choices took "
            f"{sum(e.seconds for e in efforts[1:]):.0f} s and {calls[-1] - calls[0]} scores",
        ),
    )


def _pruned(
    task: Task, share: float, batches: Sequence[Tensor], scores: Scores, checkpoint: Path
) -> nn.Module:
    config = FastNASConfig()
    config["nn.Conv2d"]["*"]["channel_divisor"] = _DIVISOR
    config["nn.BatchNorm2d"]["*"]["feature_divisor"] = _DIVISOR
    model: nn.Module
    model, _ = mtp.prune(
        copy.deepcopy(task.model),
        mode=[("fastnas", config)],
        constraints={"flops": f"{100 * share:.6f}%"},
        dummy_input=task.example,
        config={
            "checkpoint": str(checkpoint),
            "score_func": scores,
            "data_loader": list(batches),
            "collect_func": lambda batch: batch,
            "verbose": False,
        },
    )
    return model
