"""Targets `torchvision:NAME` and `timm:NAME`: pretrained networks with data of the user's."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cli.imagefolder import Transform, default_transform, image_folder
from cli.target import Target
from compressor.errors import CompressorError, DataError, TargetError


@dataclass(frozen=True)
class _Pretrained:
    """A network of a collection: how to build it, and what it expects."""

    build: Callable[[], nn.Module]
    example: Tensor
    transform: Transform
    categories: Sequence[str] = ()


def zoo_target(text: str, data: str | None, *, needs_data: bool) -> Target:
    """Builds the target and reads its data.

    Raises:
        TargetError: the library is missing, does not know the network, or cannot fetch weights.
        DataError: `data` is missing or does not fit the network.
    """
    if data is None and needs_data:
        raise DataError(
            f"{text} has no data of its own; add --data imagefolder:DIR, where DIR holds "
            "DIR/<class>/*.jpg"
        )
    library, _, name = text.partition(":")
    found = {"torchvision": _torchvision, "timm": _timm}[library](name)
    if data is None:
        return Target(text, found.build, found.example)
    folder = image_folder(data, found.transform, _outputs(found, text), found.categories)
    return Target(
        text, found.build, found.example, folder.calibration, folder.validation, note=folder.note
    )


def _torchvision(name: str) -> _Pretrained:
    models = _library("torchvision.models", "torchvision")
    _check_name(name, models.list_models(), "torchvision")
    weights: Any = models.get_model_weights(name).DEFAULT
    transform = weights.transforms() if callable(getattr(weights, "transforms", None)) else None
    crop = getattr(transform, "crop_size", [224])
    return _Pretrained(
        _builder(lambda: models.get_model(name, weights=weights), f"torchvision:{name}"),
        _example(3, crop[-1], crop[-1]),
        transform or default_transform,
        weights.meta.get("categories", ()),
    )


def _timm(name: str) -> _Pretrained:
    timm = _library("timm", "timm")
    data = _library("timm.data", "timm")
    _check_name(name.partition(".")[0], timm.list_models(), "timm")
    # The configuration belongs to the name; a network without weights is enough to read it.
    config = data.resolve_model_data_config(timm.create_model(name, pretrained=False))
    return _Pretrained(
        _builder(lambda: timm.create_model(name, pretrained=True), f"timm:{name}"),
        _example(*config["input_size"]),
        data.create_transform(**config, is_training=False),
    )


def _example(*shape: int) -> Tensor:
    """One input; noise, because zeros would hide what a wrong cut does."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def _library(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TargetError(
            f"{name}:NAME needs {name}, which cannot be imported ({error}); "
            f"`pip install layernas-compressor[{name}]`"
        ) from error
    except RuntimeError as error:  # what a compiled part says beside a torch of another build
        raise TargetError(
            f"{name}:NAME needs {name}, which does not load beside this torch ({error}); "
            "install torch and torchvision of the same build, from the same index"
        ) from error


def _check_name(name: str, known: Sequence[str], library: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise TargetError(f"{library} knows no network {name!r}{hint}")


def _builder(make: Callable[[], nn.Module], text: str) -> Callable[[], nn.Module]:
    def build_model() -> nn.Module:
        try:
            return make().eval()
        except CompressorError:
            raise
        except Exception as error:  # each library has its own errors for a failed download
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise TargetError(
                f"the weights of {text} could not be fetched: {type(error).__name__}: {lines[0]}; "
                "without a network, write a target file whose build_model() loads your own copy"
            ) from error

    return build_model


def _outputs(found: _Pretrained, text: str) -> int:
    """Number of logits of the network."""
    with torch.inference_mode():
        logits = found.build()(found.example)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise DataError(
            f"--data imagefolder needs a classifier, but {text} does not return logits "
            "[N, classes]; write a target file with score(model)"
        )
    return int(logits.shape[1])
