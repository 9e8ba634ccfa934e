"""The tiny network that the valid inputs are of; also a target file for the command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.errors import DataError


def build_model() -> nn.Module:
    """Two convolutions that can be cut, and a classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


def example_input() -> Tensor:
    """One image."""
    return torch.zeros(1, 3, 8, 8)


def batches() -> list[Tensor]:
    """Two batches of images without labels."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 8, 8, generator=rng) for _ in range(2)]


def calibration_data() -> list[Tensor]:
    """As a target for fuzzed command lines it ends here: what comes next is not their matter."""
    raise DataError("this target has no calibration data")
