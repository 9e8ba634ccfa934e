"""One encoder architecture for three CIFAR-10 tasks, against each task compressed alone.

python -m benchmarks.multitask --seeds 0 1 2 --save runs/multitask

The tasks: the ten classes; animal or vehicle; by which quarter turn an image was rotated. Their
networks are ResNet-20, the two others fine-tuned from the pretrained one first. Every way gets the
same budget, evaluations per search, images and epochs:

alone               each task searched and trained alone
separate            the shared architecture, each task trained alone
rounds              the same networks in rounds over the tasks, nothing passes
features:W          the same, with plain feature distillation of weight W
matching:W:Q        the same, with distribution matching of weight W and quantile Q

All but `alone` start from the same refitted networks of a seed. The pretrained network has learnt
all training images, so its loss on them says nothing: the first images of the test set validate,
and the others are reported on. Weights and quantile are chosen with another seed, by validation
alone: `--pilot --seeds 100 --ways separate features:0.1 features:1 …`. `--save DIR` keeps every
result as it comes, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.multitask_tables import Report, tables
from benchmarks.support import environment, sample
from compressor import Task
from compressor.files import run_folder
from compressor.multitask.finding import find_shared
from compressor.multitask.preparing import Member, prepare, shared_fingerprint
from compressor.multitask.rounds import Pupil, Rounds, learn_in_rounds
from compressor.multitask.task import checked_tasks
from compressor.progress import Event, silent
from compressor.run.finding import find
from compressor.run.pipeline import fingerprint, opened_journal
from compressor.run.reading import read_network
from compressor.run.request import Options, Stopwatch
from compressor.score.evaluate import checked_score
from compressor.score.finetune import Learner, Recipe
from compressor.score.judge import Judge, top1

Batch = tuple[Tensor, Tensor]
WAYS = ("alone", "separate", "rounds", "features:0.1", "matching:0.1:0.25")
_VEHICLES = torch.tensor([0, 1, 8, 9])
_SIZE = 128


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


def trained(module: ModuleType, name: str, images: int, epochs: int, kept: Path) -> nn.Module:
    """The task's original network: the pretrained one with a head of its own, trained on."""
    model: nn.Module = module.build_model()
    if name == "classes":
        return model
    torch.manual_seed(0)
    model.linear = nn.Linear(64, TASKS[name][0])
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    data = Relabelled(module.images("train", 0, images, size=_SIZE, augment=True), name)
    optimizer = torch.optim.AdamW(model.parameters())
    total = epochs * len(data)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=total)
    model.train()
    for epoch in range(epochs):
        _say(f"original of {name}: epoch {epoch + 1} of {epochs}")
        for x, y in data:
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), kept)
    return model.eval()


def tasks(module: ModuleType, asked: argparse.Namespace, folder: Path) -> list[Task]:
    """The three tasks."""
    validation = module.images("test", 0, asked.validation)
    return [
        Task(
            name,
            trained(module, name, asked.original_images, asked.epochs, folder / f"{name}.pt"),
            calibration=list(Relabelled(module.images("train", 0, asked.calibration), name)),
            head="linear",
            validation=list(Relabelled(validation, name)),
            training=Relabelled(
                module.images("train", 0, asked.images, size=_SIZE, augment=True), name
            ),
        )
        for name in TASKS
    ]


def shared(members: tuple[Member, ...], folder: Path) -> list[nn.Module]:
    """The refitted networks of one architecture for all tasks; a journal makes it resume."""
    known = shared_fingerprint(members, "encoder")
    with run_folder(folder) as run, opened_journal(run, known) as journal:
        (found,) = find_shared(members, "encoder", journal, Stopwatch(), _line)
    return [one.model for one in found.found]


def alone(members: tuple[Member, ...], folder: Path) -> list[nn.Module]:
    """The same with each task searched by its own validation loss."""
    models = []
    for member in members:
        task, request = member.task, member.request
        request = replace(request, score=Judge("loss", request.validation or ()))
        reading = read_network(task.model, request.example, "generic", silent)
        base = checked_score(request.score, task.model)
        known = fingerprint(request, reading)
        with run_folder(folder / task.name) as run, opened_journal(run, known) as journal:
            models.append(find(request, reading, base, journal, Stopwatch(), _line)[0].model)
    return models


def learnt(
    members: tuple[Member, ...], networks: list[nn.Module], how: Rounds, epochs: int
) -> tuple[list[nn.Module], dict[str, float]]:
    """The networks after learning, and what it took."""
    seed = members[0].request.options.seed
    pupils = []
    for member, network in zip(members, networks, strict=True):
        request = member.request
        recipe = Recipe(epochs, seed=seed, keep="last")
        judge = Judge("loss", request.validation or ())
        learner = Learner(network, request.model, request.training or (), judge, recipe)
        pupils.append(Pupil(member.task, learner, request.calibration))
    took = learn_in_rounds(pupils, epochs, how, seed, _line)
    seconds = {"training": took.seconds, "transfer": took.transfer_seconds}
    return [pupil.learner.kept() for pupil in pupils], seconds


def settings_of(way: str, rounds: int) -> Rounds:
    """How the networks learn, from the text of a way."""
    name, *numbers = way.split(":")
    if name in ("alone", "separate"):
        return Rounds()
    if name == "rounds":
        return Rounds(rounds)
    given = dict(zip(("weight", "quantile"), map(float, numbers), strict=False))
    return Rounds(rounds, name, **given)


def measured(
    module: ModuleType,
    members: tuple[Member, ...],
    models: list[nn.Module],
    asked: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Top-1 in per cent and loss of each task's network, and its loss in validation.

    A pilot sees nothing but validation data.
    """
    found = {}
    for member, model in zip(members, models, strict=True):
        name, judged = member.task.name, member.request.validation or ()
        first = 0 if asked.pilot else asked.validation
        last = asked.validation if asked.pilot else 10_000
        data = Relabelled(module.images("test", first, last), name)
        found[name] = {
            "top1": 100 * top1(model, data),
            "loss": -Judge("loss", data)(model),
            "validation": -Judge("loss", judged)(model),
        }
    return found


def run_seed(
    module: ModuleType, given: list[Task], seed: int, asked: argparse.Namespace, report: Report
) -> None:
    """Every way of one seed that the report does not know yet."""
    todo = [way for way in asked.ways if report.of(seed, way) is None]
    if not todo:
        return
    options = Options(evaluations=asked.evaluations, seed=seed, keep="last")
    members = prepare(checked_tasks(given), asked.budget, options, silent)
    if not report.originals:
        report.originals = measured(module, members, [m.task.model for m in members], asked)
        report.write()
    networks: dict[bool, list[nn.Module]] = {}
    for way in todo:
        own = way == "alone"
        if own not in networks:
            start, name = time.perf_counter(), "alone" if own else "shared"
            networks[own] = (alone if own else shared)(members, asked.save / f"{name}-{seed}")
            report.searched(seed, name, time.perf_counter() - start)
        _say(f"seed {seed}: {way}")
        models, seconds = learnt(
            members, networks[own], settings_of(way, asked.rounds), asked.finetune
        )
        reached = measured(module, members, models, asked)
        report.add(seed, way, {"seconds": seconds, "tasks": reached})


def _line(event: Event) -> None:
    if event.total and event.done == event.total:
        _say(f"  {event.stage} {event.done}/{event.total} {event.note}")


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> None:
    """Runs every seed and prints tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", default="madds=50%")
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--finetune", type=int, default=4, help="epochs of each network")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--images", type=int, default=1920, help="for fine-tuning")
    parser.add_argument("--calibration", type=int, default=512, help="images")
    parser.add_argument("--validation", type=int, default=1000, help="images of the test set")
    parser.add_argument("--pilot", action="store_true", help="report on validation data")
    parser.add_argument("--epochs", type=int, default=3, help="for the original networks")
    parser.add_argument("--original-images", type=int, default=20_000, help="for the same")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--save", type=Path, default=Path("runs/multitask"), help="folder")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.save.mkdir(parents=True, exist_ok=True)
    apart = ("seeds", "ways", "save", "json")
    settings = {name: value for name, value in vars(asked).items() if name not in apart}
    report = Report.opened(asked.save / "results.json", settings)
    module = sample("cifar10_resnet20")
    given = tasks(module, asked, asked.save)
    for seed in asked.seeds:
        run_seed(module, given, seed, asked, report)
    if asked.json:
        print(json.dumps({**report.data(), "environment": environment()}, indent=1))
        return
    print("\n".join(tables(report, asked.seeds, asked.ways)))


if __name__ == "__main__":
    main()
