"""What TARGET means: a Python file, a module, or a network of torchvision or timm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from compressor.errors import DataError, TargetError

Example: TypeAlias = Tensor | tuple[Tensor, ...]
FORMS = "path/to/file.py, package.module, torchvision:NAME or timm:NAME"


@dataclass(frozen=True)
class Target:
    """A network with the data that belongs to it.

    Attributes:
        name: the text that was given.
        build_model: a new pretrained network at each call.
        example_input: what one forward pass takes, batch first.
        calibration: batches, the same at each pass; empty where no data was asked for.
        validation: batches for the score, the same at each pass.
        training: batches for fine-tuning, or None.
        score: higher is better, or None for top-1.
        note: what the user should know about how the data was read; empty where nothing.
    """

    name: str
    build_model: Callable[[], nn.Module]
    example_input: Example
    calibration: Iterable[Any] = ()
    validation: Iterable[Any] = ()
    training: Iterable[Any] | None = None
    score: Callable[[nn.Module], float] | None = None
    note: str = ""


def resolve_target(text: str, data: str | None = None, *, needs_data: bool = True) -> Target:
    """Reads a target.

    Args:
        text: one of the forms in `FORMS`.
        data: `imagefolder:DIR`, for the networks of torchvision and timm.
        needs_data: whether batches will be read; without, only the model and its input are.

    Raises:
        TargetError: the target is missing, does not import, or lacks a function.
        DataError: the data is missing, empty or has another form.
    """
    # Each kind is imported when it is asked for: torchvision takes a second.
    if text.startswith(("torchvision:", "timm:")):
        from cli.zoo import zoo_target  # noqa: PLC0415

        return zoo_target(text, data, needs_data=needs_data)
    if ":" in text and not Path(text).exists():
        raise TargetError(f"a target is {FORMS}, but got {text!r}")
    if data is not None:
        raise DataError(
            f"--data is for torchvision:NAME and timm:NAME, but the target is {text!r}, which "
            "brings its own calibration_data() and validation_data()"
        )
    from cli.python_target import python_target  # noqa: PLC0415

    return python_target(text, needs_data=needs_data)
