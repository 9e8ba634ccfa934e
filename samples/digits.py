"""A small depthwise-separable CNN on scikit-learn's scans of handwritten digits.

The network is trained from scratch on first use (seconds) and kept among the system's temporary
files, so that a second command compresses the same network.

    compressor compress samples/digits.py --budget madds=40% --finetune 10 --out runs/demo
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 6
BATCH = 64
WEIGHTS = Path(tempfile.gettempdir()) / f"compressor-digits-{EPOCHS}-epochs.pt"

torch.set_num_threads(1)  # so small a network gains nothing from more, and loses on a busy machine


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution, each with BatchNorm and ReLU."""
    return named(
        depthwise=nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        depthwise_norm=nn.BatchNorm2d(inputs),
        depthwise_act=nn.ReLU(),
        pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
        pointwise_norm=nn.BatchNorm2d(outputs),
        pointwise_act=nn.ReLU(),
    )


def named(**modules: nn.Module) -> nn.Sequential:
    """A sequence whose parts have names; the search layers are called after them."""
    return nn.Sequential(OrderedDict(modules))


def network() -> nn.Sequential:
    """Digits [N, 1, 8, 8] to logits [N, 10]."""
    return named(
        stem=nn.Conv2d(1, 32, 3, padding=1, bias=False),
        stem_norm=nn.BatchNorm2d(32),
        stem_act=nn.ReLU(),
        block1=block(32, 64, 1),
        block2=block(64, 96, 2),
        block3=block(96, 96, 1),
        block4=block(96, 128, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(128, 10),
    )


def batches(part: str) -> list[tuple[Tensor, Tensor]]:
    """The scans in a fixed order: 1,000 to train, 297 to search, 500 that nothing is tuned on."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    start, end = {"train": (0, 1000), "search": (1000, 1297), "test": (1297, 1797)}[part]
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order][start:end] / 16
    y = torch.tensor(labels, dtype=torch.long)[order][start:end]
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def shifted(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The batches as they are, and moved by one pixel in each direction."""
    moves = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return [
        (functional.pad(x, (1, 1, 1, 1))[..., down : down + 8, right : right + 8], y)
        for x, y in data
        for down, right in moves
    ]


def build_model() -> nn.Module:
    model = network()
    if not WEIGHTS.exists():
        train(model, training_data())
        unfinished = WEIGHTS.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), unfinished)
        unfinished.replace(WEIGHTS)  # as a whole, whoever else trains at the same time
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model.eval()


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    """Trains in place; the same on every run."""
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=EPOCHS * len(data)
    )
    model.train()
    for _ in range(EPOCHS):
        for x, y in data:
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()


def example_input() -> Tensor:
    return torch.zeros(1, 1, 8, 8)


def calibration_data() -> list[tuple[Tensor, Tensor]]:
    return batches("train")[:4]


def validation_data() -> list[tuple[Tensor, Tensor]]:
    return batches("search")


def training_data() -> list[tuple[Tensor, Tensor]]:
    return shifted(batches("train"))


def test_data() -> list[tuple[Tensor, Tensor]]:
    """Nothing is tuned on these; for figures."""
    return batches("test")
