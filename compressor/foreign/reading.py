"""`read_file`: a network from a file that is no Python code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import TargetError
from compressor.foreign.archive import read_archive
from compressor.foreign.batch import freed, of_size, run
from compressor.foreign.onnx_file import read_onnx
from compressor.foreign.program import read_program
from compressor.foreign.steps import StepNetwork

SUFFIXES = (".pt2", ".onnx")


@dataclass(frozen=True)
class FileNetwork:
    """A network that was read from a file.

    Attributes:
        model: in evaluation mode; its modules and parameters bear the names of the file.
        example: inputs that it takes; of batch size 1 where it takes any.
        input_names: of its inputs, in order.
        batch: how many inputs it takes at a time; None where it takes any number.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    batch: int | None = None


def read_file(path: str | Path) -> FileNetwork:
    """Reads a `.pt2` that `torch.export.save` wrote, or a `.onnx`; no code of the file is run.

    Convolutions, linear layers and normalisations become torch's own modules. A batch size that is
    written into the file is freed where that can be proved right.

    Raises:
        TargetError: there is no such file, it is damaged, or it holds what cannot be read; the
            message names the operators.
        CheckError: torch computes something else than ONNX Runtime does of the file.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise TargetError(f"a network's file must be there, but {str(path)!r} {problem}")
    if path.suffix not in SUFFIXES:
        raise TargetError(
            f"a network's file must end in {' or '.join(SUFFIXES)}, but got {str(path)!r}"
        )
    if path.suffix == ".onnx":
        network, example, batch = read_onnx(path)
        return FileNetwork(network, example, network.plan.inputs, batch)
    archive = read_archive(path)
    network = read_program(archive, str(path))
    return _ready(network, tuple(map(_varied, archive.example)))


def _ready(network: StepNetwork, example: tuple[Tensor, ...]) -> FileNetwork:
    """Runs it, and frees its batch size."""
    run(network, example)
    names = network.plan.inputs
    size = example[0].shape[0] if example and example[0].dim() else 0
    if freed(network, example):
        return FileNetwork(network, of_size(example, size, 1), names)
    return FileNetwork(network, example, names, size)


def _varied(tensor: Tensor) -> Tensor:
    """Noise in place of constant inputs, which would hide what a wrong cut does."""
    if (
        not tensor.is_floating_point()
        or not tensor.numel()
        or not bool((tensor == tensor.flatten()[0]).all())
    ):
        return tensor.detach()
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
