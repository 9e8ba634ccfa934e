"""Targets that are files of other formats: the network from the file, the data from the user."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cli.target import Target
from compressor.errors import DataError, TargetError
from compressor.foreign.reading import FileNetwork, read_file
from compressor.network.outputs import output_tensors

_IMAGES = (
    "the file does not say how its images are prepared: they are resized to {} and normalised with "
    "ImageNet's mean and deviation; where it was trained otherwise, give prepared inputs with "
    "--data tensors:FILE.safetensors"
)

_FIXED = (
    "the batch size {} is written into the file and could not be freed; write the file with a "
    "dynamic batch dimension"
)


def file_target(text: str, data: str | None, *, needs_data: bool) -> Target:
    """Reads the file and the data.

    Raises:
        TargetError: the file is damaged, or holds what cannot be read.
        DataError: `data` is missing or does not fit the network.
    """
    if data is None and needs_data:
        raise DataError(
            f"{text} has no data of its own; add --data imagefolder:DIR, where DIR holds "
            "DIR/<class>/*.jpg, or --data tensors:FILE.safetensors"
        )
    found = read_file(Path(text).expanduser())
    example = found.example if len(found.example) > 1 else found.example[0]
    fixed = "" if found.batch is None else _FIXED.format(found.batch)
    if data is None:
        return Target(text, builder(found.model), example, note=fixed)
    if fixed:
        raise TargetError(f"a network must take batches of any size to be compressed, but {fixed}")
    if data.startswith("tensors:"):
        from cli.tensor_data import tensor_data  # noqa: PLC0415

        read = tensor_data(data, found.input_names, found.example)
        return Target(text, builder(found.model), example, read.calibration, read.validation)
    return _with_images(text, data, found)


def _with_images(text: str, data: str, found: FileNetwork) -> Target:
    from cli.imagefolder import Prepared, image_folder  # noqa: PLC0415

    image = found.example[0]
    if len(found.example) != 1 or image.dim() != 4 or image.shape[1] != 3:
        shapes = ", ".join(str(list(t.shape)) for t in found.example)
        raise DataError(
            f"--data imagefolder needs a network that takes images [N, 3, H, W], but {text} takes "
            f"{shapes}; give --data tensors:FILE.safetensors"
        )
    height, width = image.shape[2:]
    folder = image_folder(data, Prepared(height, width), outputs(found.model, image, text))
    notes = [_IMAGES.format(f"{height} × {width}"), folder.note]
    return Target(
        text,
        builder(found.model),
        image,
        folder.calibration,
        folder.validation,
        note="; ".join(filter(None, notes)),
    )


def outputs(model: nn.Module, example: Tensor, text: str) -> int:
    """Number of logits of a network.

    Raises:
        DataError: it returns no logits.
    """
    with torch.inference_mode():
        found = output_tensors(model(example))
    if len(found) != 1 or found[0].dim() != 2:
        raise DataError(
            f"--data imagefolder needs a classifier, but {text} does not return logits "
            "[N, classes]; give --data tensors:FILE.safetensors without targets, or write a target "
            "file with score(model)"
        )
    return int(found[0].shape[1])


def builder(model: nn.Module) -> Callable[[], nn.Module]:
    """Copies of a network, for whoever may change what it builds."""
    return lambda: copy.deepcopy(model)
