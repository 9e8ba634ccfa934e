"""A network with the data that belongs to it, however TARGET named it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # a shell that completes a command must not wait for torch
    from torch import Tensor, nn

Example: TypeAlias = "Tensor | tuple[Tensor, ...]"
FORMS = (
    "path/to/file.py, package.module, torchvision:NAME, timm:NAME, hf:NAME_OR_DIR, FILE.pt2 or "
    "FILE.onnx"
)


@dataclass(frozen=True)
class Target:
    """A network with the data that belongs to it.

    Attributes:
        name: the text that was given.
        build_model: a new pretrained network at each call.
        example_input: what one forward pass takes, batch first.
        calibration: batches, the same at each pass; empty where no data was asked for.
        validation: batches for the score, the same at each pass; None where a part of the
            calibration data serves.
        training: batches for fine-tuning, or None.
        score: higher is better, or None for one of `compressor.names.SCORES`.
        note: what the user should know about how the data was read; empty where nothing.
    """

    name: str
    build_model: Callable[[], nn.Module]
    example_input: Example
    calibration: Iterable[Any] = ()
    validation: Iterable[Any] | None = None
    training: Iterable[Any] | None = None
    score: Callable[[nn.Module], float] | None = None
    note: str = ""
