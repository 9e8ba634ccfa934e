"""The CIFAR-10 ResNet-56 of He et al., pretrained: `cifar10_resnet20.py`, only deeper.

    compressor compress samples/cifar10_resnet56.py --budget madds=50% --out runs/r56

The weights are `weights/cifar10_resnet56_akamaster.pt` in the folder of the other sample, which
must lie beside this file. The first 1,024 training images calibrate, without their labels; the
last 2,000 decide the search, the others train.
"""

from __future__ import annotations

from cifar10_resnet20 import (
    SHARED,
    example_input,
    images,
    pretrained,
    test_data,
    training_data,
    validation_data,
)
from torch import Tensor, nn

__all__ = [
    "build_model",
    "calibration_data",
    "example_input",
    "images",
    "test_data",
    "training_data",
    "validation_data",
]

WEIGHTS = SHARED / "weights" / "cifar10_resnet56_akamaster.pt"
CALIBRATION = 1024


def build_model() -> nn.Module:
    return pretrained(9, WEIGHTS)


def calibration_data() -> list[Tensor]:
    return [x for x, _ in images("train", 0, CALIBRATION, size=256)]
