"""An ONNX file as a network, proved against ONNX Runtime before anybody uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from compressor.device.measure import Settings, create_session, run_session
from compressor.errors import CheckError, MeasureError, TargetError
from compressor.foreign.batch import freed, of_size, run
from compressor.foreign.onnx_graph import Graph, Input, Node, load_graph, named
from compressor.foreign.onnx_layers import LAYERS
from compressor.foreign.onnx_moves import MOVES
from compressor.foreign.onnx_reader import Reader, Unreadable
from compressor.foreign.onnx_values import VALUES
from compressor.foreign.steps import StepNetwork

_HANDLERS: Mapping[str, Callable[[Reader, Node], None]] = {**LAYERS, **MOVES, **VALUES}
_BATCH = 2  # stands for a free batch size: 1 would be taken for a size that is broadcast
_MOST = 1 << 28  # elements of an input, a gigabyte
_TOLERANCE = 1e-4  # of the output's scale; a wrong operator moves it by 1e-2 and more
_REMEDY = "give the torch network that it was exported from, as a Python target or FILE.pt2"


def read_onnx(path: Path) -> tuple[StepNetwork, tuple[Tensor, ...], int | None]:
    """The network, inputs that it takes, and its batch size where that is fixed.

    Raises:
        TargetError: it is no ONNX file, or operators of it cannot be read; names them.
        CheckError: torch gives other outputs than ONNX Runtime.
    """
    graph = load_graph(path)
    _check_kinds(graph, path)
    example = tuple(_random(one) for one in graph.inputs)
    if not example:
        raise TargetError(f"a network must have an input, but {str(path)!r} has none")
    network = _network(graph, example, path)
    run(network, example)
    size = example[0].shape[0] if example[0].dim() else 0
    free = freed(network, example)
    compared = [example, *([of_size(example, size, 3)] if free and _takes_any(graph) else [])]
    _check(network, path, compared)
    return network, of_size(example, size, 1) if free else example, None if free else size


def _check_kinds(graph: Graph, path: Path) -> None:
    """Says all that is missing at once."""
    unknown: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.kind not in _HANDLERS:
            unknown.setdefault(node.kind, []).append(node)
    if unknown:
        listed = "; ".join(f"{kind} ({named(nodes)})" for kind, nodes in sorted(unknown.items()))
        raise TargetError(f"{str(path)!r} has operators that cannot be read: {listed}; {_REMEDY}")


def _network(graph: Graph, example: Sequence[Tensor], path: Path) -> StepNetwork:
    reader = Reader(graph, example)
    with torch.no_grad():
        for node in graph.nodes:
            if node.outputs[0] in reader.done:
                continue
            try:
                _HANDLERS[node.kind](reader, node)
            except Unreadable as error:
                raise TargetError(
                    f"the {node.kind} {node.name!r} in {str(path)!r} cannot be read: {error}; "
                    f"{_REMEDY}"
                ) from error
            except Exception as error:  # whatever torch raises on what a file tells it
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise TargetError(
                    f"the {node.kind} {node.name!r} in {str(path)!r} cannot be run: {line}; "
                    f"{_REMEDY}"
                ) from error
    return reader.network()


def _random(one: Input) -> Tensor:
    """An input in the shape that the file asks for; of free sizes only the batch is known."""
    free = [d for d, size in enumerate(one.shape) if size is None]
    if [d for d in free if d != 0]:
        raise TargetError(
            f"every size of an input but the batch must be fixed, but {one.name!r} has "
            f"{[size or '?' for size in one.shape]}; write the file with the sizes that it will "
            "be run with"
        )
    shape = [size or _BATCH for size in one.shape]
    if min(shape, default=1) < 1 or math.prod(shape) > _MOST:
        raise TargetError(
            f"sizes of an input must be above 0 and it may have at most {_MOST} elements, but "
            f"{one.name!r} has {shape}; write the file with the sizes that it will be run with"
        )
    generator = torch.Generator().manual_seed(0)
    if one.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(one.dtype)
    # as indices; which there are is not told, but 0 and 1 are
    return torch.randint(0, 2, shape, generator=generator).to(one.dtype)


def _takes_any(graph: Graph) -> bool:
    return any(one.shape and one.shape[0] is None for one in graph.inputs)


def _check(network: StepNetwork, path: Path, compared: Sequence[tuple[Tensor, ...]]) -> None:
    """The same outputs as ONNX Runtime's, or an error; only the first inputs must run in both."""
    for inputs in compared:
        try:
            session = create_session(path, Settings())
            wanted = run_session(session, [t.numpy() for t in inputs])
        except MeasureError as error:
            if inputs is not compared[0]:
                return  # the file says that it takes any batch size, but does not
            raise TargetError(f"{str(path)!r} must run in ONNX Runtime, but {error}") from error
        for found, want in zip(run(network, inputs), wanted, strict=True):
            _compare(found, torch.from_numpy(want), path)


def _compare(found: Tensor, want: Tensor, path: Path) -> None:
    if found.shape != want.shape:
        raise CheckError(
            f"{str(path)!r} gives {list(want.shape)} in ONNX Runtime, but {list(found.shape)} as "
            f"it was read into torch; this is a mistake of the reader: {_REMEDY}"
        )
    one, other = found.double(), want.double()
    scale = float(other.abs().max()) if other.numel() else 0.0
    gap = float((one - other).abs().max()) if other.numel() else 0.0
    if not gap <= _TOLERANCE * scale:
        raise CheckError(
            f"{str(path)!r} as read into torch must give ONNX Runtime's outputs within "
            f"{_TOLERANCE:g} of their scale, but they differ by {gap:.2g} of {scale:.2g}; this is "
            f"a mistake of the reader: {_REMEDY}"
        )
