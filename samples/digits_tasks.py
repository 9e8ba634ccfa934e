"""Three tasks on scikit-learn's scans of handwritten digits, one network for each.

Which digit it is, whether it is odd, and whether it is above four. The networks are trained from
scratch on first use (seconds each) and kept among the system's temporary files. Their encoders are
built alike; heads differ in their classes.

    compressor compress-multitask samples/digits_tasks.py --budget madds=40% --finetune 5 --out DIR
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from digits import EPOCHS, batches, network, shifted, train
from torch import Tensor, nn

from compressor import Task

Labels = Callable[[Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]

TASKS: dict[str, tuple[int, Labels]] = {
    "digit": (10, lambda y: y),
    "odd": (2, lambda y: y % 2),
    "above-four": (2, lambda y: (y > 4).long()),
}


def labelled(part: str, labels: Labels) -> Batches:
    """Batches of a part of the scans, with a task's labels."""
    return [(x, labels(y)) for x, y in batches(part)]


def trained(name: str, classes: int, data: Batches) -> nn.Module:
    """A task's network; trained once, the same on every run."""
    model = network()
    model.head = nn.Linear(128, classes)
    weights = Path(tempfile.gettempdir()) / f"compressor-digits-{name}-{EPOCHS}-epochs.pt"
    if not weights.exists():
        train(model, data)
        unfinished = weights.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), unfinished)
        unfinished.replace(weights)  # as a whole, whoever else trains at the same time
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def task(name: str) -> Task:
    """One task with its network and its data."""
    classes, labels = TASKS[name]
    training = shifted(labelled("train", labels))
    return Task(
        name,
        trained(name, classes, training),
        calibration=labelled("train", labels)[:4],
        head="head",
        validation=labelled("search", labels),
        training=training,
    )


def tasks() -> list[Task]:
    return [task(name) for name in TASKS]


def test_data(name: str) -> Batches:
    """Nothing is tuned on these; for figures."""
    return labelled("test", TASKS[name][1])
