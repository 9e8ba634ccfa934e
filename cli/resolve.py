"""What TARGET means: a file, a module, or a network of a library."""

from __future__ import annotations

from pathlib import Path

from cli.target import FORMS, Target
from compressor.errors import DataError, TargetError

_LIBRARIES = ("torchvision:", "timm:", "hf:")
SUFFIXES = (".pt2", ".onnx")


def takes_data(text: str) -> bool:
    """Whether a target brings no data of its own, so that `--data` is for it."""
    return text.startswith(_LIBRARIES) or Path(text).suffix in SUFFIXES


def resolve_target(text: str, data: str | None = None, *, needs_data: bool = True) -> Target:
    """Reads a target.

    Args:
        text: one of the forms in `FORMS`.
        data: `imagefolder:DIR` or `tensors:FILE.safetensors`, for targets without their own.
        needs_data: whether batches will be read; without, only the model and its input are.

    Raises:
        TargetError: the target is missing, does not import, or lacks a function.
        DataError: the data is missing, empty or has another form.
    """
    # Each kind is imported when it is asked for: torchvision takes a second.
    if text.startswith("hf:"):
        from cli.hugging_face import hugging_face_target  # noqa: PLC0415

        return hugging_face_target(text, data, needs_data=needs_data)
    if text.startswith(_LIBRARIES):
        from cli.zoo import zoo_target  # noqa: PLC0415

        return zoo_target(text, data, needs_data=needs_data)
    if Path(text).suffix in SUFFIXES:
        from cli.file_target import file_target  # noqa: PLC0415

        return file_target(text, data, needs_data=needs_data)
    if ":" in text and not Path(text).exists():
        raise TargetError(f"a target is {FORMS}, but got {text!r}")
    if data is not None:
        raise DataError(
            f"--data is for targets that bring no data of their own, but the target is {text!r}, "
            "which brings its own calibration_data() and validation_data()"
        )
    from cli.python_target import python_target  # noqa: PLC0415

    return python_target(text, needs_data=needs_data)
