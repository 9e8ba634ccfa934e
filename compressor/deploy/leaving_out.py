"""Blocks taken out of an exported graph: what read their output reads their input. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, helper

from compressor.deploy.targets import known_shapes
from compressor.errors import ExportError
from compressor.space import Block

_INSTEAD = "export the materialised network instead"


@dataclass(frozen=True)
class _Ends:
    """The tensor that a block reads, and the one that it makes."""

    read: str
    made: str


class LeavingOut:
    """Where the blocks of a graph begin and end, as far as they are asked for."""

    def __init__(self, graph: GraphProto, scopes: Mapping[str, str]) -> None:
        """Notes what will be forgotten.

        Args:
            graph: with the shapes that the exporter noted.
            scopes: of each operator's first output, the path of the module whose code made it.
        """
        self._shapes = known_shapes(graph)
        self._weights = [t.name for t in graph.initializer]
        self._nodes = [
            (scopes.get(n.output[0], "") if n.output else "", tuple(n.input), tuple(n.output))
            for n in graph.node
        ]
        self._outputs = {output.name for output in graph.output}
        self._fixed = set(self._weights)  # what no input of the network changes
        for _, inputs, outputs in self._nodes:
            if all(name in self._fixed for name in inputs if name):
                self._fixed |= set(outputs)
        self._nested = any(a.type == AttributeProto.GRAPH for n in graph.node for a in n.attribute)
        self._ends: dict[Block, _Ends] = {}

    def remove(self, graph: GraphProto, blocks: Sequence[Block]) -> None:
        """Takes blocks out, in place, with all that nothing reads any more.

        Raises:
            ExportError: it cannot be seen where a block begins and ends.
        """
        if not blocks:
            return
        if self._nested:
            raise ExportError(
                "blocks cannot be taken out of a graph with branches or loops of its own; "
                + _INSTEAD
            )
        ends = [self._found(block) for block in blocks]
        instead = {e.made: e.read for e in ends}
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = _resolved(name, instead)
        nodes = [n for n in graph.node if not instead.keys() & set(n.output)]
        nodes += [
            helper.make_node("Identity", [_resolved(made, instead)], [made], name=f"{made}__kept")
            for made in instead
            if made in self._outputs
        ]
        needed = set(self._outputs)
        alive = []
        for node in reversed(nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                alive.append(node)
        for block in blocks:
            left = [name for name in self._weights if name in needed and block.holds(name)]
            if left:
                raise ExportError(
                    f"of a block that is taken out nothing may be left, but {left[0]!r} is read "
                    f"without {block.module!r}; {_INSTEAD}"
                )
        del graph.node[:]
        graph.node.extend(reversed(alive))
        weights = [t for t in graph.initializer if t.name in needed]
        del graph.initializer[:]
        graph.initializer.extend(weights)

    def _found(self, block: Block) -> _Ends:
        if block not in self._ends:
            self._ends[block] = self._searched(block)
        return self._ends[block]

    def _searched(self, block: Block) -> _Ends:
        inside = [block.holds(path) for path, _, _ in self._nodes]
        pairs = list(zip(inside, self._nodes, strict=True))
        own = {name for name in self._weights if block.holds(name)}
        for within, (_, inputs, outputs) in pairs:
            if within and own & set(inputs):
                own |= set(outputs)
        read_outside = {n for within, (_, names, _) in pairs if not within for n in names}
        made = {n for within, (_, _, names) in pairs if within for n in names}
        out = _only(own & made & (read_outside | self._outputs), "makes", block)
        given = {n for within, (_, names, _) in pairs if within for n in names if n}
        given -= made | self._fixed
        shape = self._shapes.get(out)
        return _Ends(_only({n for n in given if self._shapes.get(n) == shape}, "reads", block), out)


def _only(names: Iterable[str], what: str, block: Block) -> str:
    found = sorted(names)
    if len(found) != 1:
        raise ExportError(
            f"a block that is taken out of a graph reads one tensor and makes one of its shape, "
            f"but {block.module!r} {what} {', '.join(map(repr, found)) or 'none'}; {_INSTEAD}"
        )
    return found[0]


def _resolved(name: str, instead: Mapping[str, str]) -> str:
    """What is read in place of a tensor, past all blocks that are gone."""
    while name in instead:
        name = instead[name]
    return name
