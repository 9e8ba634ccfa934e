"""Writes ONNX files that are proved to work.

A file appears under its name only after the ONNX checker accepted it and ONNX Runtime gave the
network's own outputs for it; until then it lies beside under a temporary name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from compressor.deploy.agreement import TOLERANCE, largest_difference, random_inputs, with_batch
from compressor.deploy.graphs import traced
from compressor.deploy.joining import joined
from compressor.deploy.slicing import BaseGraph
from compressor.deploy.writing import checked_bytes, loaded, temporary
from compressor.errors import ExportError, reason_of
from compressor.network.structure import named_tensors

_BATCHES = (1, 3)  # neither is the traced one, 2


@dataclass(frozen=True)
class ExportReport:
    """What was written and how well it agrees.

    Attributes:
        path: the file.
        opset: version of the ONNX operator set.
        bytes: size of the file.
        max_difference: largest difference between ONNX Runtime and torch as a share of the
            largest output, over everything that was compared.
        batch_sizes: batch sizes that were compared, ascending.
        input_names: names of the graph's inputs in order.
        output_names: names of its outputs in order.
    """

    path: Path
    opset: int
    bytes: int
    max_difference: float
    batch_sizes: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ()


def export_onnx(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
    samples: Sequence[tuple[Tensor, ...]] = (),
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Writes the network in evaluation mode as one ONNX file and proves that it works.

    ONNX Runtime on one CPU thread is compared with torch on `samples` and on random inputs at
    two batch sizes (at the example's alone, where the batch is static).

    Args:
        model: the network; not touched, it is copied.
        example: its inputs; dimension 0 of those that agree with the first in it is the batch.
        path: the file; replaced only when everything holds.
        opset: version of the ONNX operator set; the exporter's own where None.
        dynamic_batch: whether the file takes any batch size, or only the example's.
        metadata: texts to keep in the file.
        samples: further inputs to compare, for example calibration batches.
        tolerance: largest difference allowed, as a share of the largest output.

    Raises:
        ExportError: the network cannot be exported, or the file cannot be written.
        CheckError: ONNX Runtime and torch disagree; no file is left.
    """
    copied = _copied(model)
    inputs = tuple(t.detach().cpu() for t in example)
    proto, _, _ = traced(copied, inputs, opset=opset, dynamic=dynamic_batch, optimize=True)
    if not dynamic_batch:
        samples = [with_batch(tuple(s), inputs[0].shape[0]) for s in samples]
    compared = [*samples, *random_inputs(inputs, _BATCHES if dynamic_batch else None)]
    return _proved(proto, copied, compared, path, metadata, tolerance)


def export_joint(
    networks: Mapping[str, nn.Module],
    files: Mapping[str, Path],
    example: tuple[Tensor, ...],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    samples: Sequence[tuple[Tensor, ...]] = (),
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Writes several networks that read the same inputs as one ONNX file and proves that it works.

    It holds the graphs of their own files as `compressor.deploy.joining.joined` puts them together.
    Every output is compared with torch, on `samples` and on random inputs at two batch sizes.

    Args:
        networks: by name; not touched, they are copied.
        files: what `export_onnx` wrote for each, for any batch size.
        example: inputs of all of them, as for `export_onnx`.
        path: the file; replaced only when everything holds.
        metadata: texts to keep in the file.
        samples: further inputs to compare.
        tolerance: largest difference allowed, as a share of an output's largest value.

    Raises:
        ExportError: the graphs cannot be put together, or the file cannot be written.
        CheckError: ONNX Runtime and torch disagree; no file is left.
    """
    together = _Together([_copied(model) for model in networks.values()])
    proto = joined({name: onnx.load(str(files[name])) for name in networks})
    compared = [*samples, *random_inputs(tuple(t.detach().cpu() for t in example), _BATCHES)]
    return _proved(proto, together, compared, path, metadata, tolerance)


class _Together(nn.Module):
    """Networks that read the same inputs, one after the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> list[Any]:
        return [network(*inputs) for network in self.networks]


def _proved(
    proto: onnx.ModelProto,
    model: nn.Module,
    compared: Sequence[tuple[Tensor, ...]],
    path: Path,
    metadata: Mapping[str, str] | None,
    tolerance: float,
) -> ExportReport:
    """Writes the graph under its name once it gave the network's own outputs."""
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    with temporary(path, checked_bytes(proto)) as written:
        difference = largest_difference(model, loaded(written), compared, tolerance)
    return ExportReport(
        path=path,
        opset=next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")),
        bytes=path.stat().st_size,
        max_difference=difference,
        batch_sizes=tuple(sorted({int(sample[0].shape[0]) for sample in compared})),
        input_names=tuple(i.name for i in proto.graph.input),
        output_names=tuple(o.name for o in proto.graph.output),
    )


def export_base(
    model: nn.Module,
    example: tuple[Tensor, ...],
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
) -> BaseGraph:
    """Exports the network once, with its parameters under their own names, for slicing.

    Nothing is folded; ONNX Runtime folds and fuses by itself when it loads a slice.

    Raises:
        ExportError: the network cannot be exported.
    """
    copied = _copied(model)
    inputs = tuple(t.detach().cpu() for t in example)
    proto, unused, scopes = traced(
        copied, inputs, opset=opset, dynamic=dynamic_batch, optimize=False
    )
    aliases = _aliases(copied, {t.name for t in proto.graph.initializer})
    # A tied tensor's other names are never read, but the tensor is.
    unused -= aliases.keys()
    return BaseGraph(checked_bytes(proto), aliases=aliases, unused=unused, scopes=scopes)


def _copied(model: nn.Module) -> nn.Module:
    """A copy for the CPU in evaluation mode, so that nothing here can touch the original."""
    try:
        return copy.deepcopy(model).cpu().eval()
    except Exception as error:
        raise ExportError(
            f"the network must be copied before it is exported, but {reason_of(error)}"
        ) from error


def _aliases(model: nn.Module, present: set[str]) -> dict[str, str]:
    """Other names of tied tensors, each with the one that the exporter took."""
    tensors = named_tensors(model)
    names = {id(t): name for name, t in tensors.items() if name in present}
    return {n: names[id(t)] for n, t in tensors.items() if n not in present and id(t) in names}
