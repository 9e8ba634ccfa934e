"""A child of the benchmark: `python -m benchmarks.peers.child make|judge FOLDER`.

Reads `request.json` in the folder. `make` compresses and writes `module.pt` and `made.json`;
`judge` reads the module back and writes `model.onnx` and `judged.json`. An exception ends the
child; the benchmark reports its last line.
"""

from __future__ import annotations

import copy
import importlib
import os
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.peers import protocol
from benchmarks.peers.protocol import Judged, Made, Request
from benchmarks.peers.task import Meter, Method, Task, load_task, peak_mib
from benchmarks.support import sample
from compressor.deploy.export import export_onnx
from compressor.network.counting import count
from compressor.score.evaluate import recalibrate
from compressor.score.finetune import Recipe, fine_tune
from compressor.score.judge import top1


def make(request: Request, folder: Path) -> None:
    """Compresses with one method."""
    load = os.getloadavg()[0]
    task = load_task(sample(request.sample), request.budget)
    name, function = protocol.place(request.method)
    method: Method = getattr(importlib.import_module(name), function)
    before = peak_mib()
    product = method(task, request)
    size = count(product.model, task.example)
    torch.save(product.model, folder / protocol.MODULE)
    made = Made(
        madds=size.madds,
        params=size.params,
        madds_share=size.madds / task.size.madds,
        params_share=size.params / task.size.params,
        target=task.target,
        seconds=product.effort.seconds,
        cpu_seconds=product.effort.cpu_seconds,
        memory_mib=product.effort.peak_mib,
        memory_before_mib=before,
        score_calls=product.score_calls,
        load=load,
        stages=product.stages,
        attempts=product.attempts,
        notes=product.notes,
    )
    protocol.write(folder / protocol.MADE, made)


def judge(request: Request, folder: Path) -> None:
    """Judges what a method made; one procedure for all of them."""
    module = sample(request.sample)
    task = load_task(module, request.budget)
    model = _saved(folder / protocol.MODULE)
    export_onnx(model, task.example, folder / protocol.ONNX, samples=[(task.calibration[0],)])
    test = module.test_data()
    recalibrated = copy.deepcopy(model)
    recalibrate(recalibrated, task.calibration)
    judged = Judged(100 * top1(model, test), 100 * top1(recalibrated, test))
    protocol.write(folder / protocol.JUDGED, judged)  # there, whatever becomes of the rest
    if request.finetune:
        meter = Meter()
        tuned = _fine_tuned(recalibrated, task, module.training_data(), request)
        seconds = meter.read().seconds
        judged = Judged(judged.returned, judged.recalibrated, 100 * top1(tuned, test), seconds)
        protocol.write(folder / protocol.JUDGED, judged)


def _fine_tuned(model: nn.Module, task: Task, training: object, request: Request) -> nn.Module:
    """The best epoch on the search images, with the original as teacher."""
    recipe = Recipe(request.finetune, seed=request.seed)
    score = partial(top1, validation=task.search)
    return fine_tune(model, task.model, training, score, recipe)[0]  # type: ignore[arg-type]


def _saved(path: Path) -> nn.Module:
    # A whole module, because only the tool that cut it knows its shapes; `make` wrote it just now.
    model = torch.load(path, weights_only=False)
    if not isinstance(model, nn.Module):
        raise TypeError(f"a method must return a torch.nn.Module, but got {type(model).__name__}")
    return model.eval()


def main() -> None:
    """Does one step in one folder."""
    step, folder = sys.argv[1], Path(sys.argv[2])
    request = protocol.read(Request, folder / protocol.REQUEST)
    torch.set_num_threads(request.threads)
    random.seed(request.seed)
    np.random.seed(request.seed)
    torch.manual_seed(request.seed)
    {"make": make, "judge": judge}[step](request, folder)


if __name__ == "__main__":
    main()
