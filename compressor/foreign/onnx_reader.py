"""Turns the nodes of an ONNX graph into steps, running each on an example as it is read.

Every size is known then, and what depends on sizes alone is a constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressor.foreign.builder import Builder
from compressor.foreign.layers import Layer
from compressor.foreign.onnx_graph import Graph, Node
from compressor.foreign.steps import Held, StepNetwork, Value, leaves

_TAKEN = {*dir(nn.Module()), "plan"}


class Unreadable(Exception):  # noqa: N818  (no error of the user's: becomes part of one message)
    """Why one node cannot be read."""


class Reader:
    """Reads one graph.

    Attributes:
        graph: which.
        builder: takes the steps and modules.
        values: what every name of the graph is on the example.
        done: names of nodes that an earlier node has taken in.
    """

    def __init__(self, graph: Graph, example: Sequence[Tensor]) -> None:
        self.graph = graph
        self.builder = Builder({}, frozenset())
        self.values: dict[str, Any] = dict(graph.constants)
        self.values |= {i.name: t for i, t in zip(graph.inputs, example, strict=True)}
        self.done: set[str] = set()
        self._free = {i.name for i in graph.inputs}
        self._sizes: set[str] = set()
        self._held: dict[str, str] = {}
        self._names: set[str] = set()
        self._layers: dict[tuple[Any, ...], str] = {}
        self._used: set[int] = set()
        self._kept: list[Tensor] = []
        self._turned: dict[str, Tensor] = {}
        self._readers: dict[str, list[Node]] = {}
        self._makers = {name: node for node in graph.nodes for name in node.outputs}
        for node in graph.nodes:
            for name in set(node.inputs):
                self._readers.setdefault(name, []).append(node)

    def network(self) -> StepNetwork:
        """The network of all that was read."""
        outputs = [self._leaf(Value(name)) for name in self.graph.outputs]
        return self.builder.network([i.name for i in self.graph.inputs], outputs)

    def given(self, node: Node, place: int) -> str:
        """Name of an input; empty where it is left out."""
        return node.inputs[place] if place < len(node.inputs) else ""

    def value(self, node: Node, place: int) -> Any:
        """What an input is on the example; None where it is left out."""
        name = self.given(node, place)
        return self.values[name] if name else None

    def fixed(self, node: Node, place: int) -> Tensor | None:
        """The same of an input that does not depend on the network's inputs.

        Raises:
            Unreadable: it does.
        """
        name = self.given(node, place)
        if name in self._free:
            raise Unreadable(f"its input {name!r} is computed from values of the network's input")
        return self.values[name] if name else None

    def numbers(self, node: Node, place: int) -> list[int] | None:
        """The same as whole numbers."""
        found = self.fixed(node, place)
        return None if found is None else [int(v) for v in found.flatten().tolist()]

    def is_free(self, name: str) -> bool:
        """Whether a value depends on the network's inputs."""
        return name in self._free

    def size(self, name: str, sizes: Tensor) -> None:
        """Notes sizes of a value that depends on the network's inputs."""
        self.values[name] = sizes
        self._sizes.add(name)

    def is_size(self, name: str) -> bool:
        """Whether a constant was computed from such sizes."""
        return name in self._sizes

    def only_reader(self, name: str) -> Node | None:
        """The one node that reads a value, if there is just one."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def emit(
        self,
        outs: Sequence[str],
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        several: bool = False,
        sized: bool = False,
    ) -> None:
        """Adds a call of a function; one that reads constants alone is a constant.

        Args:
            outs: names of what it gives.
            target: a function of torch.
            args: values, or `Value` for those of the graph.
            kwargs: the same by name.
            several: whether it gives several.
            sized: whether it is told sizes that may change with the batch, so that it is a call
                even if it reads constants.
        """
        kwargs = dict(kwargs or {})
        found = target(*self._now(list(args)), **{k: self._now(v) for k, v in kwargs.items()})
        self._keep(outs, found, several=several)
        read = {leaf.name for leaf in leaves(list(args)) if isinstance(leaf, Value)}
        if read & self._sizes:
            self._sizes.update(outs)
        if sized or read & self._free:
            self._free.update(outs)
            self.builder.call(
                outs,
                target,
                self._leaf(list(args)),
                {k: self._leaf(v) for k, v in kwargs.items()},
                several=several,
            )

    def emit_layer(self, node: Node, weight: str, layer: Layer, source: str, out: str) -> None:
        """Adds a call of a module, named after its weight, or where another is, after its node.

        Exporters store equal tensors once. A product that runs twice is one module; what else has
        the same values gets its own.
        """
        key = layer.key
        if key in self._layers and issubclass(layer.kind, _ConvNd | nn.Linear):
            path = self._layers[key]
        else:
            own = {n: t.clone() if id(t) in self._used else t for n, t in layer.tensors.items()}
            self._used |= {id(t) for t in own.values()}
            self._kept += own.values()  # an id is one tensor's only while that lives
            layer = replace(layer, tensors=own)
            path = self._free_path(self._path(node, weight), self._path(node, ""))
            self.builder.layer(path, layer)
            self._layers[key] = path
            self._names |= {path, *(f"{path}.{leaf}" for leaf in own)}
        with torch.no_grad():
            found = self.builder.module(path)(self.values[source])
        self._keep([out], found, several=False)
        self._free.add(out)
        self.builder.call([out], path, [self._leaf(Value(source))])

    def maker(self, name: str) -> Node | None:
        """The node that makes a value; None of inputs and constants of the file."""
        return self._makers.get(name)

    def turned(self, name: str) -> Tensor:
        """A matrix of constants, transposed; the same tensor whenever it is asked for."""
        if name not in self._turned:
            self._turned[name] = self.values[name].T.contiguous()
        return self._turned[name]

    def _path(self, node: Node, weight: str) -> str:
        """Where a module belongs: where its weight's name says, or where its own does."""
        home, _, leaf = weight.rpartition(".")
        if home and leaf in ("weight", "bias") and weight in self.graph.constants:
            return clean(home)
        parts = [p for p in re.split(r"[/:]+", node.name) if p]
        if len(parts) > 1 and parts[-1].rstrip("0123456789_") == node.kind:
            parts = parts[:-1]  # "/layer1/conv1/Conv"
        return clean(".".join(parts) or node.outputs[0])

    def _free_path(self, *paths: str) -> str:
        """The first that neither a module nor a tensor has, or the last made longer."""
        found = next((path for path in paths if path not in self._names), paths[-1])
        while found in self._names:
            found += "_"
        return found

    def _keep(self, outs: Sequence[str], found: Any, *, several: bool) -> None:
        parts = found if several else [found]
        for name, one in zip(outs, parts, strict=False):
            self.values[name] = one

    def _now(self, given: Any) -> Any:
        match given:
            case Value():
                return self.values[given.name]
            case list() | tuple():
                return type(given)(map(self._now, given))
        return given

    def _leaf(self, given: Any) -> Any:
        """Constants as what the network holds."""
        if isinstance(given, list | tuple):
            return type(given)(map(self._leaf, given))
        if not isinstance(given, Value) or given.name in self._free:
            return given
        if given.name not in self._held:
            name = clean(given.name)
            while name in self._names:
                name += "_"
            self._names.add(name)
            self._held[given.name] = name
            value = self.values[given.name]
            self.builder.add(name, value, learnt=value.is_floating_point())
        return Held(self._held[given.name])


def clean(name: str) -> str:
    """A name that modules and parameters may have."""
    parts = [re.sub(r"\W", "_", part) for part in name.split(".") if part]
    return ".".join(f"{part}_" if part in _TAKEN else part for part in parts) or "unnamed"
