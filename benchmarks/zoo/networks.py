"""The networks of the zoo, with random weights, and an input that each accepts."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.vision import torchvision

_SMALLEST = Path(__file__).with_name("timm.txt")  # of every family, see benchmarks.zoo.families
MOST = 90_000_000  # parameters
_SIDES = {"inception_v3": 299, "ssd300_vgg16": 300}


def names(patterns: list[str]) -> list[str]:
    """Names such as `torchvision:resnet18` that match any of the patterns; all without any."""
    return [n for n in _all() if not patterns or any(fnmatch(n, p) for p in patterns)]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network in evaluation mode, its weights and its input drawn with seed 0.

    BatchNorms get statistics and scales as training leaves them, different from channel to
    channel: with those of a new network a wrong cut can go unnoticed.
    """
    library, _, plain = name.partition(":")
    torch.manual_seed(0)
    model = _torchvision(plain) if library == "torchvision" else _timm(plain)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None  # noqa: S101  (both are there or none)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return model.eval(), (torch.randn(1, *_shape(name, model)),)


def _all() -> Iterator[str]:
    models = torchvision().models
    kinds = (models, models.segmentation, models.detection)
    yield from (f"timm:{name}" for name in _SMALLEST.read_text(encoding="utf-8").split())
    for name in [n for kind in kinds for n in models.list_models(module=kind)]:
        if models.get_model_weights(name).DEFAULT.meta["num_params"] <= MOST:
            yield f"torchvision:{name}"


def _torchvision(name: str) -> nn.Module:
    """Of a detector the backbone, whose feature maps are its outputs: so the heads stay intact."""
    models = torchvision().models
    dense, detects = (models.list_models(module=m) for m in (models.segmentation, models.detection))
    options: dict[str, Any] = {"weights_backbone": None} if name in (*dense, *detects) else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model.get_submodule("backbone") if name in detects else model


def _timm(name: str) -> nn.Module:
    torchvision()
    import timm  # noqa: PLC0415  (optional, and it needs torchvision)

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _shape(name: str, model: nn.Module) -> tuple[int, ...]:
    library, _, plain = name.partition(":")
    if library == "timm":
        settings: Any = model.pretrained_cfg
        return tuple(settings["input_size"])
    side = _SIDES.get(plain, 224)
    return 3, side, side
