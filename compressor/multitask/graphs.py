"""Whether the encoders of several ONNX files are one graph. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import onnx

from compressor.errors import CheckError


def encoder_nodes(path: Path, heads: Sequence[str]) -> tuple[str, ...]:
    """The operators of a file that do not depend on a head's weights, in order, as texts.

    Each says its operator and attributes and, for each input, which operator's output, which input
    of the graph, or a constant of which type and shape it is. Names and weights are left out, so
    that networks of one architecture give equal texts.

    Args:
        path: the file; the exporter keeps the names of parameters.
        heads: paths of the modules whose parameters are a head's.
    """
    graph = onnx.load(str(path)).graph
    known = {value.name: f"input {i}" for i, value in enumerate(graph.input)}
    for tensor in graph.initializer:
        known[tensor.name] = f"{tensor.data_type}{list(tensor.dims)}"
    own = {t.name for t in graph.initializer if _in(t.name, heads)}
    texts: list[str] = []
    for node in graph.node:
        if own.intersection(node.input):
            own.update(node.output)
            continue
        settings = sorted(f"{a.name}={_value(a)}" for a in node.attribute)
        read = [known.get(name, "") for name in node.input]
        for place, name in enumerate(node.output):
            known[name] = f"operator {len(texts)} output {place}"
        texts.append(f"{node.op_type}({', '.join([*read, *settings])})")
    return tuple(texts)


def require_one_encoder(files: Mapping[str, tuple[Path, Sequence[str]]]) -> int:
    """Holds the encoders of all files against the first.

    Args:
        files: of each task the file, and the paths of its heads.

    Returns:
        How many operators the encoder has.

    Raises:
        CheckError: an encoder is another graph, or all of a file depends on its head; names the
            first difference.
    """
    found = {name: encoder_nodes(*file) for name, file in files.items()}
    (first, nodes), *others = found.items()
    for name, theirs in others:
        for number, (one, two) in enumerate(_differences(nodes, theirs)):
            if one != two:
                raise CheckError(
                    f"the exported encoders must be one graph, but operator {number} is "
                    f"{one or 'missing'} for task {first!r} and {two or 'missing'} for {name!r}; "
                    "name as heads all parts of the networks that differ"
                )
    if not nodes:
        raise CheckError(
            f"an exported encoder must have operators, but those of task {first!r} all depend on "
            "its head; name a smaller part as the head"
        )
    return len(nodes)


def _differences(one: Sequence[str], two: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    yield from zip_longest(one, two)


def _in(name: str, heads: Sequence[str]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)


def _value(attribute: onnx.AttributeProto) -> str:
    return str(onnx.helper.get_attribute_value(attribute))
