"""The compressed network on disk: plain tensors and a plain description, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.deploy.fitting import require_fit
from compressor.errors import ArchitectureError, RunError
from compressor.files import networks_within, write_atomic, write_text
from compressor.network.folding import folded
from compressor.network.structure import materialise
from compressor.space import Architecture, SearchSpace
from compressor.untrusted import read_json

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"
_SCHEMA = 1
_SHOWN = 6  # folders in a message
_HEADER = 32 << 20  # bytes, far above what names and shapes take


def save(run: Path, model: nn.Module, space: SearchSpace, architecture: Architecture) -> None:
    """Writes the compressed network's tensors and how it was cut from the original.

    Raises:
        RunError: the directory cannot be written.
    """
    description = {
        "schema": _SCHEMA,
        "architecture": list(architecture),
        "choices": space.describe(architecture),
        "space": space.to_json(),
    }
    write_atomic(run / WEIGHTS, lambda path: _save_weights(model, path))
    write_text(run / ARCHITECTURE, json.dumps(description))


def load(run: Path | str, model: nn.Module) -> nn.Module:
    """Gives back the compressed network of a run.

    Args:
        run: the run directory.
        model: the original network as its own code builds it; its weights do not matter, they
            are replaced. Not touched.

    Returns:
        A new module in evaluation mode.

    Raises:
        RunError: the run holds no compressed network, is broken, or belongs to another model.
    """
    folder = Path(run)
    space, architecture = read_architecture(folder)
    try:
        whole = folded(model)
        require_fit(space, whole)
        small = materialise(whole, space, architecture)
        _fill(small, _read_weights(folder / WEIGHTS, small))
    except (
        ArchitectureError, SafetensorError, RuntimeError, IndexError, ValueError, OSError,
        OverflowError, TypeError, KeyError,
    ) as error:  # fmt: skip
        raise RunError(
            f"the run {str(folder)!r} does not fit this {type(model).__name__}: "
            f"{_first_line(error)}; pass the model that was compressed, as its code builds it"
        ) from error
    return small.eval()


def read_architecture(run: Path) -> tuple[SearchSpace, Architecture]:
    """The search space of a run and the architecture that was chosen.

    Raises:
        RunError: the file is missing or has another form.
    """
    path = run / ARCHITECTURE
    try:
        data: Any = read_json(path)
        if data["schema"] != _SCHEMA:
            raise RunError(
                f"{ARCHITECTURE} must have schema {_SCHEMA}, but {str(path)!r} has "
                f"{data['schema']!r}; it was written by another version"
            )
        space = SearchSpace.from_json(data["space"])
        architecture = tuple(int(option) for option in data["architecture"])
        space.validate(architecture)
    except FileNotFoundError as error:
        inner = " or ".join(networks_within(run)[:_SHOWN])
        remedy = f"folder of one network, {inner}" if inner else "--out directory of a finished run"
        raise RunError(f"{str(run)!r} holds no {ARCHITECTURE}; give the {remedy}") from error
    except (
        OSError, ValueError, KeyError, TypeError, OverflowError, ArchitectureError,
    ) as error:  # fmt: skip
        raise RunError(f"{str(path)!r} cannot be read: {_first_line(error)}") from error
    return space, architecture


def _save_weights(model: nn.Module, path: Path) -> None:
    plain = torch.contiguous_format
    values = {
        name: t.detach().clone(memory_format=plain) for name, t in _unique_tensors(model).items()
    }
    try:
        save_file(values, path)
    except SafetensorError as error:  # how a full disk shows itself here
        raise OSError(str(error)) from error


def _read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ArchitectureError(f"{path.name} is no plain file")
    needed = sum(t.numel() * t.element_size() for t in _unique_tensors(model).values())
    if path.exists() and path.stat().st_size > needed + _HEADER:
        raise ArchitectureError(
            f"{path.name} holds {path.stat().st_size:,} bytes, but the model takes {needed:,}"
        )
    return dict(load_file(path))


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor under its first name only."""
    first: dict[int, str] = {}
    named = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name, tensor in named.items():
        first.setdefault(id(tensor), name)
    return {name: named[name] for name in first.values()}


def _fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copies the values into the network, in place; raises `ArchitectureError` unless all fit."""
    tensors = _unique_tensors(model)
    for name in sorted(tensors.keys() ^ values.keys()):
        raise ArchitectureError(f"the tensor {name!r} is on one side only")
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise ArchitectureError(
                f"the tensor {name!r} is {list(values[name].shape)} in the run, but "
                f"{list(tensor.shape)} in the model"
            )
        if tensor.dtype != values[name].dtype:
            raise ArchitectureError(
                f"the tensor {name!r} is {values[name].dtype} in the run, but {tensor.dtype} in "
                "the model"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
