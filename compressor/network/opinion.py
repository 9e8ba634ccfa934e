"""thop's count beside ours, as a second opinion. The only importer of thop."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from compressor.network.counting import single
from compressor.network.data import Inputs

_NOTE = (
    "thop also counts BatchNorm, activations and pooling, misses functional calls and attention, "
    "and counts transposed convolutions too high"
)


def thop_madds(model: nn.Module, example: Inputs) -> tuple[float | None, str]:
    """Thop's multiply-adds for one input, or None and why.

    thop leaves buffers in the network it counts, so it only ever sees a copy.
    """
    try:
        copied = copy.deepcopy(model).eval()
        with torch.no_grad():
            madds, _ = _thop().profile(copied, inputs=single(example), verbose=False)
    except Exception as error:  # noqa: BLE001  (a second opinion must not stop an inspection)
        return None, f"thop failed: {type(error).__name__}: {error}"
    return float(madds), _NOTE


def _thop() -> Any:
    """The package; imported late and silently, since it compares versions in a deprecated way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import thop  # noqa: PLC0415
    return thop
