"""The CIFAR-10 ResNet-20 of He et al. (arXiv 1512.03385, section 4.2), pretrained.

    compressor compress samples/cifar10_resnet20.py --budget madds=50% --finetune 3 --out runs/r20

Weights and images are read from the folder in $COMPRESSOR_SHARED (default: `shared` beside this
repository): `weights/cifar10_resnet20_akamaster.pt`, and `data/cifar10` with mosaics of 1,000
images each, `train_00.webp` … `train_49.webp`, `test_00.webp` … `test_09.webp`, and `labels.npz`.
The first 1,024 training images calibrate, the last 2,000 decide the search, the others train.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

SHARED = Path(os.environ.get("COMPRESSOR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
WEIGHTS = SHARED / "weights" / "cifar10_resnet20_akamaster.pt"
IMAGES = SHARED / "data" / "cifar10"
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
CALIBRATION, SEARCH = 1024, 2000


class Block(nn.Module):
    """Two 3x3 convolutions; a shortcut without parameters pads the channels (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(out + x)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks each, 16, 32 and 64 channels wide."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, 32, 32] to logits [N, 10]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


@dataclass(frozen=True)
class Images:
    """Batches of normalised images, kept as bytes until they are read.

    Attributes:
        pixels: uint8 [N, 3, 32, 32].
        labels: int64 [N].
        size: images in a batch.
        augment: whether each pass shuffles, flips, and shifts by up to 4 pixels.
    """

    pixels: Tensor
    labels: Tensor
    size: int = 250
    augment: bool = False

    def __len__(self) -> int:
        return (len(self.labels) + self.size - 1) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.randperm(count) if self.augment else torch.arange(count)
        for part in order.split(self.size):
            x = (self.pixels[part].float() / 255 - MEAN) / STD
            yield (_augmented(x) if self.augment else x), self.labels[part]


def _augmented(x: Tensor) -> Tensor:
    flip = torch.rand(len(x)) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = functional.pad(x, (4, 4, 4, 4))
    rows, columns = (torch.randint(0, 9, (len(x), 1)) + torch.arange(32) for _ in range(2))
    image = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def images(part: str, first: int, last: int, **how: int | bool) -> Images:
    """Images `first … last - 1` of the training or test set."""
    mosaics = [
        np.asarray(Image.open(IMAGES / f"{part}_{i:02d}.webp").convert("RGB"))
        .reshape(25, 32, 40, 32, 3)
        .transpose(0, 2, 4, 1, 3)
        .reshape(1000, 3, 32, 32)
        for i in range(first // 1000, -(-last // 1000))
    ]
    start = first // 1000 * 1000
    pixels = np.concatenate(mosaics)[first - start : last - start]
    labels = np.load(IMAGES / "labels.npz")[f"y_{part}"][first:last]
    return Images(torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64)), **how)


def pretrained(blocks: int, weights: Path) -> nn.Module:
    """The network of 6 * `blocks` + 2 layers with the weights of a file."""
    model = ResNet(blocks)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def build_model() -> nn.Module:
    return pretrained(3, WEIGHTS)


def example_input() -> Tensor:
    return torch.zeros(1, 3, 32, 32)


def calibration_data() -> Images:
    return images("train", 0, CALIBRATION)


def validation_data() -> Images:
    return images("train", 50_000 - SEARCH, 50_000)


def training_data() -> Images:
    return images("train", 0, 50_000 - SEARCH, size=128, augment=True)


def test_data() -> Images:
    """The full test set; decides nothing, only reports."""
    return images("test", 0, 10_000)
