"""Networks as ONNX graphs. The only place with `torch.onnx.export`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from compressor.deploy.agreement import REMEDY, batched, with_batch
from compressor.deploy.attention import FourDimensional
from compressor.errors import ExportError, reason_of
from compressor.network.outputs import make_known
from compressor.quiet import quiet

_SCOPES = "pkg.torch.onnx.name_scopes"


def traced(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    opset: int | None,
    dynamic: bool,
    optimize: bool,
) -> tuple[onnx.ModelProto, frozenset[str], dict[str, str]]:
    """The exported graph, the names of parameters that the forward pass never reads, and scopes.

    A scope is the path of the module whose code made an operator, here by its first output. Where
    the exporter's optimiser breaks the graph, it comes without (`clamp` by tensors, twice of one
    tensor: the second one's bounds are lost).
    """
    if dynamic:
        # Tracing takes a size of 1 for a constant; 2 stands for any batch.
        inputs = with_batch(inputs, 2)
    sizes = [{0: torch.export.Dim("batch")} if carries else {} for carries in batched(inputs)]
    dims = _by_parameter(model, sizes) if dynamic else None
    try:
        with quiet(), torch.no_grad(), FourDimensional():
            make_known(model(*inputs))
            program, proto = _exported(model, inputs, opset, dims, optimize)
            if optimize and _is_broken(proto):
                program, proto = _exported(model, inputs, opset, dims, False)
            scopes = _scopes(proto)
            _forget_sources(proto)
            return proto, _unread(program), scopes
    except Exception as error:
        raise ExportError(
            f"torch cannot export the network: {reason_of(error)}"
            + (f"; {REMEDY}" if dynamic else "")
        ) from error


def _by_parameter(model: nn.Module, each: Sequence[Any]) -> tuple[Any, ...]:
    """What is told of each input, as torch.export takes it: all of `*inputs` in one place."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(each)
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    others = tuple(each[named:])
    return (*each[:named], others) if others else tuple(each)  # nothing is told of none


def _exported(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    opset: int | None,
    dims: tuple[Any, ...] | None,
    optimize: bool,
) -> tuple[torch.onnx.ONNXProgram, onnx.ModelProto]:
    """The program and its graph, which is written anew whenever the program is asked for it."""
    program = torch.onnx.export(
        model,
        inputs,
        dynamo=True,
        external_data=False,
        opset_version=opset,
        dynamic_shapes=dims,
        optimize=optimize,
        verbose=False,
    )
    # None is only for the older exporter, which is not asked for.
    program = cast(torch.onnx.ONNXProgram, program)
    return program, program.model_proto


def _is_broken(proto: onnx.ModelProto) -> bool:
    """Whether an operator reads what nothing in the graph makes."""
    graph = proto.graph
    known = {"", *(given.name for given in (*graph.input, *graph.initializer))}
    for node in graph.node:
        if not known.issuperset(node.input):
            return True
        known.update(node.output)
    return False


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
