"""Writes ONNX files that are proved to work. The only place with `torch.onnx.export`.

A file appears under its name only after the ONNX checker accepted it and ONNX Runtime gave the
network's own outputs for it; until then it lies beside under a temporary name.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from compressor.deploy.agreement import (
    REMEDY,
    TOLERANCE,
    batched,
    largest_difference,
    random_inputs,
    with_batch,
)
from compressor.deploy.attention import FourDimensional
from compressor.deploy.joining import joined
from compressor.deploy.slicing import BaseGraph
from compressor.device.measure import Session, Settings, create_session
from compressor.errors import ExportError, MeasureError
from compressor.network.outputs import make_known
from compressor.network.structure import named_tensors
from compressor.quiet import quiet

_LARGEST = 2**31 - 1  # what one protobuf message, and so one ONNX file, can hold
_SCOPES = "pkg.torch.onnx.name_scopes"
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
    proto, _, _ = _traced(copied, inputs, opset=opset, dynamic=dynamic_batch, optimize=True)
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
    with _temporary(path, _checked_bytes(proto)) as written:
        difference = largest_difference(model, _loaded(written), compared, tolerance)
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
    proto, unused, scopes = _traced(
        copied, inputs, opset=opset, dynamic=dynamic_batch, optimize=False
    )
    aliases = _aliases(copied, {t.name for t in proto.graph.initializer})
    # A tied tensor's other names are never read, but the tensor is.
    unused -= aliases.keys()
    return BaseGraph(_checked_bytes(proto), aliases=aliases, unused=unused, scopes=scopes)


def _copied(model: nn.Module) -> nn.Module:
    """A copy for the CPU in evaluation mode, so that nothing here can touch the original."""
    try:
        return copy.deepcopy(model).cpu().eval()
    except Exception as error:
        raise ExportError(
            f"the network must be copied before it is exported, but {_reason(error)}"
        ) from error


def _traced(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    opset: int | None,
    dynamic: bool,
    optimize: bool,
) -> tuple[onnx.ModelProto, frozenset[str], dict[str, str]]:
    """The exported graph, the names of parameters that the forward pass never reads, and scopes.

    A scope is the path of the module whose code made an operator, here by its first output.
    """
    if dynamic:
        # Tracing takes a size of 1 for a constant; 2 stands for any batch.
        inputs = with_batch(inputs, 2)
    dims = [{0: torch.export.Dim("batch")} if carries else {} for carries in batched(inputs)]
    try:
        with quiet(), torch.no_grad(), FourDimensional():
            make_known(model(*inputs))
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=tuple(dims) if dynamic else None,
                optimize=optimize,
                verbose=False,
            )
            # None is only for the older exporter, which is not asked for.
            program = cast(torch.onnx.ONNXProgram, program)
            proto = program.model_proto
            scopes = _scopes(proto)
            _forget_sources(proto)
            return proto, _unread(program), scopes
    except Exception as error:
        raise ExportError(
            f"torch cannot export the network: {_reason(error)}"
            + (f"; {REMEDY}" if dynamic else "")
        ) from error


def _scopes(proto: onnx.ModelProto) -> dict[str, str]:
    """From the exporter's notes, as `["", "blocks", "blocks.0", "view_3"]`: the last but one."""
    found = {}
    for node in proto.graph.node:
        for noted in node.metadata_props:
            if noted.key == _SCOPES and node.output:
                names = ast.literal_eval(noted.value)
                found[node.output[0]] = str(names[-2]) if len(names) > 1 else ""
    return found


def _forget_sources(proto: onnx.ModelProto) -> None:
    """Drops the exporter's notes on where each operator came from.

    They hold the paths of the user's machine, and made up a quarter of a small file.
    """
    graph = proto.graph
    nodes = [node for scope in (graph, *proto.functions) for node in scope.node]
    for noted in (*nodes, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del noted.metadata_props[:]
        noted.doc_string = ""


def _unread(program: torch.onnx.ONNXProgram) -> frozenset[str]:
    traced = program.exported_program
    if traced is None:
        return frozenset()
    signature = traced.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    idle = (n.name for n in traced.graph.nodes if n.op == "placeholder" and not n.users)
    return frozenset(targets[name] for name in idle if name in targets)


def _aliases(model: nn.Module, present: set[str]) -> dict[str, str]:
    """Other names of tied tensors, each with the one that the exporter took."""
    tensors = named_tensors(model)
    names = {id(t): name for name, t in tensors.items() if name in present}
    return {n: names[id(t)] for n, t in tensors.items() if n not in present and id(t) in names}


def _checked_bytes(proto: onnx.ModelProto) -> bytes:
    try:
        if proto.ByteSize() > _LARGEST:
            raise ExportError(
                f"one ONNX file holds at most 2 GiB, but the network takes {proto.ByteSize():,} "
                "bytes; compress it further or export it in half precision"
            )
        onnx.checker.check_model(proto)
        return bytes(proto.SerializeToString())
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {_reason(error)}") from error


def _loaded(path: Path) -> Session:
    try:
        return create_session(path, Settings())
    except MeasureError as error:
        raise ExportError(
            f"the exported file must run, but {error}; try another --opset"
        ) from error


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """The data under a name beside `path`; it takes the name of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ExportError(
            f"the ONNX file must be writable, but {path}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The last line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
