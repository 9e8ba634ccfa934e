"""One encoder architecture for three CIFAR-10 tasks, against each task compressed alone.

python -m benchmarks.multitask --seeds 0 1 2 --finetune 3

The tasks: the ten classes; animal or vehicle; by which quarter turn an image was rotated. Their
networks are ResNet-20, the two others fine-tuned from the pretrained one first. Both ways get the
same budget, evaluations per search, and fine-tuning. Two controls of IMTNAS, rounds over the tasks
and transfer between them, are not in this package, so nothing is said of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import compressor
from benchmarks.support import environment, mean_spread, sample
from compressor import Task
from compressor.progress import Event
from compressor.score.judge import Judge, top1

Batch = tuple[Tensor, Tensor]
_VEHICLES = torch.tensor([0, 1, 8, 9])
_TRAINED = 50_000 - 2000  # the last images decide the search


def _turned(x: Tensor, _: Tensor) -> Batch:
    """Every image by one of four quarter turns, by its place in the batch."""
    turns = torch.arange(len(x)) % 4
    images = [torch.rot90(one, int(k), (1, 2)) for one, k in zip(x, turns, strict=True)]
    return torch.stack(images), turns


TASKS: dict[str, tuple[int, Callable[[Tensor, Tensor], Batch]]] = {
    "classes": (10, lambda x, y: (x, y)),
    "vehicle": (2, lambda x, y: (x, torch.isin(y, _VEHICLES).long())),
    "rotation": (4, _turned),
}


@dataclass(frozen=True)
class Relabelled:
    """Batches of CIFAR-10 as a task sees them."""

    batches: Any
    task: str

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for x, y in self.batches:
            yield TASKS[self.task][1](x, y)


def trained(module: ModuleType, name: str, data: Relabelled, epochs: int) -> nn.Module:
    """The task's original network: the pretrained one with a head of its own, trained on."""
    model = module.build_model()
    if name == "classes":
        return model  # type: ignore[no-any-return]
    torch.manual_seed(0)
    model.linear = nn.Linear(64, TASKS[name][0])
    optimizer = torch.optim.AdamW(model.parameters())
    total = epochs * len(data)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=total)
    model.train()
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()  # type: ignore[no-any-return]


def tasks(module: ModuleType, epochs: int, images: int) -> list[Task]:
    """The three tasks, on at most so many images of each part of the data."""
    found = []
    for name in TASKS:
        last = min(images, _TRAINED)
        training = Relabelled(module.images("train", 0, last, size=128, augment=True), name)
        found.append(
            Task(
                name,
                trained(module, name, training, epochs),
                calibration=_few(Relabelled(module.calibration_data(), name), images),
                head="linear",
                validation=_few(Relabelled(module.validation_data(), name), images),
                training=training,
            )
        )
    return found


def together(given: list[Task], how: dict[str, Any], folder: Path) -> dict[str, nn.Module]:
    """One architecture for all tasks."""
    result = compressor.compress_multitask(given, out=folder, progress=_line, **how)
    return {task.name: task.model for task in result.tasks}


def alone(given: list[Task], how: dict[str, Any], folder: Path) -> dict[str, nn.Module]:
    """Each task searched by its own validation loss."""
    return {
        task.name: compressor.compress(
            task.model,
            task.calibration[0][0][:1],  # type: ignore[index]
            calibration=task.calibration,
            validation=task.validation,
            training=task.training,
            score="loss",
            out=folder / task.name,
            progress=_line,
            **how,
        ).model
        for task in given
    }


def run(
    module: ModuleType, given: list[Task], how: dict[str, Any], images: int
) -> dict[str, dict[str, Any]]:
    """Top-1 in per cent and loss on the test set for each way and task, and seconds."""
    found: dict[str, dict[str, Any]] = {}
    for name, way in (("shared", together), ("alone", alone)):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            models = way(given, how, Path(folder) / "run")
        seconds = time.perf_counter() - start
        found[name] = {"seconds": seconds, "tasks": measured(module, models, images)}
    return found


def measured(
    module: ModuleType, models: dict[str, nn.Module], images: int
) -> dict[str, dict[str, float]]:
    """Top-1 in per cent and loss of each task's network on the test set."""
    found = {}
    for name, model in models.items():
        data = _few(Relabelled(module.test_data(), name), images)
        found[name] = {"top1": 100 * top1(model, data), "loss": -Judge("loss", data)(model)}
    return found


def _few(data: Relabelled, images: int) -> list[Batch]:
    """The first batches that hold so many images."""
    found: list[Batch] = []
    for batch in data:
        if sum(len(x) for x, _ in found) >= images:
            break
        found.append(batch)
    return found


def _line(event: Event) -> None:
    if event.total and event.done == event.total:
        print(f"  {event.stage} {event.done}/{event.total} {event.note}", file=sys.stderr)


def main() -> None:
    """Runs every seed and prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="madds=50%")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--finetune", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="for the original networks")
    parser.add_argument(
        "--images", type=int, default=_TRAINED, help="most of each part of the data"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    module = sample("cifar10_resnet20")
    given = tasks(module, options.epochs, options.images)
    originals = measured(module, {task.name: task.model for task in given}, options.images)
    runs = []
    for seed in options.seeds:
        how = {"budget": options.budget, "evaluations": options.evaluations, "seed": seed}
        runs.append(run(module, given, how | {"finetune": options.finetune}, options.images))
    if options.json:
        report = {"options": vars(options), "originals": originals, "runs": runs}
        print(json.dumps(report | {"environment": environment()}, indent=1))
        return
    for name in TASKS:
        print(f"{name}: original {originals[name]['top1']:.2f} %")
        for way in runs[0]:
            print(f"  {way}: {mean_spread([r[way]['tasks'][name]['top1'] for r in runs])} %")
    for way in runs[0]:
        sums = [sum(r[way]["tasks"][n]["loss"] / originals[n]["loss"] for n in TASKS) for r in runs]
        seconds = [r[way]["seconds"] for r in runs]
        print(f"{way}: sum of normalised losses {mean_spread(sums)}, {mean_spread(seconds)} s")


if __name__ == "__main__":
    main()
