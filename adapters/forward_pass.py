"""What a forward pass of the network tells an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from compressor.network.counting import evaluating, forward, single
from compressor.network.proof import BROKEN, Probe
from compressor.network.sized import watching
from compressor.network.sized_calls import INFERRED, SizedCall
from compressor.network.structure import materialise
from compressor.space import Architecture, Choice, SearchLayer, SearchSpace

_Size: TypeAlias = tuple[str, int]  # of which call, and which of its sizes


@dataclass(frozen=True)
class Run:
    """What a forward pass of the network told.

    Attributes:
        order: place of each module in the order in which the pass first reaches it.
        sizes: what every call that is told sizes was told.
    """

    order: Mapping[str, int]
    sizes: Mapping[str, tuple[int, ...]]


def read_run(model: nn.Module, example: tuple[Tensor, ...]) -> Run:
    """Runs the network once on the first of the batch."""
    order: dict[str, int] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def note(module: nn.Module, _: object) -> None:
        order.setdefault(names[id(module)], len(order))

    def tell(name: str, call: SizedCall, _: object) -> None:
        sizes.setdefault(name, call.sizes)

    handles = []
    try:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                handles.append(module.register_forward_pre_hook(note))
        with evaluating(model), watching(model, tell):
            forward(model, single(example))
    finally:
        for handle in handles:
            handle.remove()
    return Run(order, sizes)


@dataclass(frozen=True)
class Told:
    """How the code of smaller networks gets its sizes.

    Attributes:
        right: sizes that follow the tensors that the code is given.
        derived: by layer, sizes that the code derives from what the layer cuts, other than they
            are to be.
    """

    right: frozenset[_Size] = frozenset()
    derived: Mapping[str, frozenset[_Size]] = field(default_factory=dict)


def told_sizes(
    model: nn.Module, example: tuple[Tensor, ...], run: Run, layers: Sequence[SearchLayer]
) -> Told:
    """Runs smaller networks, whose every size is put right, and looks at what their code gave.

    Layers are cut together, and in halves where they do not run or a size is derived from some of
    them. Of a layer that does not run alone nothing is known: `verify` decides with all its sizes
    replaced.
    """
    # Trunks first: sizes derived from a width are mostly of theirs, and so few halves hold them.
    trunks = sorted(layers, key=lambda x: -len(x.group.couplings if x.group else ()))
    return _told(model, example, run, trunks)


def _told(
    model: nn.Module, example: tuple[Tensor, ...], run: Run, layers: Sequence[SearchLayer]
) -> Told:
    if not layers:
        return Told()
    space = SearchSpace(tuple(layers))
    if len(layers) == 1:
        cut: Architecture = (_roundest(layers[0]),)
    else:  # of different parts of their width, so that one cannot be taken for another
        cut = tuple(i % (len(layer.choices) - 1) for i, layer in enumerate(layers))
    given = _given_sizes(model, example, run, space, cut)
    derived = frozenset(
        key for key, (was, now, size) in (given or {}).items() if size not in (was, now)
    )
    if len(layers) > 1 and (given is None or derived):
        half = len(layers) // 2
        one, two = (_told(model, example, run, x) for x in (layers[:half], layers[half:]))
        return Told(one.right | two.right, {**one.derived, **two.derived})
    owned = {(e.activation, e.dim) for x in layers if x.group for e in x.group.extents}
    right = (k for k, (_, now, size) in (given or {}).items() if size == now and k in owned)
    return Told(frozenset(right), {layers[0].name: derived} if derived else {})


def _roundest(layer: SearchLayer) -> int:
    """The option that a number which divides the original's width most likely divides as well."""
    width = layer.choices[-1].channels or 1
    return max(
        range(len(layer.choices) - 1), key=lambda i: math.gcd(layer.choices[i].channels or 1, width)
    )


def settled(
    probe: Probe, layers: Sequence[SearchLayer]
) -> tuple[dict[str, tuple[Choice, ...]], dict[str, str]]:
    """By layer the choices whose networks run, the original among them; and what is wrong.

    Code may ask for a width that heads divide. The smallest that runs is proved as `verify` proves
    it: code that derives a number, as a scale, from a width is wrong with every choice, by little
    often, so float64 decides. Layers are tried together, and alone where that fails.
    """
    found: dict[str, list[Choice]] = {layer.name: [] for layer in layers}
    wrong: dict[str, str] = {}
    for i in range(max(len(layer.choices) for layer in layers) - 1):
        tried = [x for x in layers if i < len(x.choices) - 1 and x.name not in wrong]
        good = _running(probe, tried, i)
        wrong |= _wrong(probe, [x for x in good if not found[x.name]], i)
        for layer in good:
            found[layer.name].append(layer.choices[i])
    choices = {x.name: (*found[x.name], x.choices[-1]) for x in layers if x.name not in wrong}
    return choices, wrong


def _running(probe: Probe, layers: Sequence[SearchLayer], choice: int) -> list[SearchLayer]:
    """The layers with whose choice the network runs."""
    if not layers:
        return []
    try:
        small = materialise(
            probe.model, SearchSpace(tuple(layers)), (choice,) * len(layers), share=True
        )
        with evaluating(small):
            forward(small, probe.example)
    except BROKEN:
        return [x for x in layers if len(layers) > 1 and _running(probe, [x], choice)]
    return list(layers)


def _wrong(probe: Probe, layers: Sequence[SearchLayer], choice: int) -> dict[str, str]:
    """The layers whose choice cannot be trusted, and why."""
    pairs = [replace(x, choices=(x.choices[choice], x.choices[-1])) for x in layers]
    reason = (probe.precise or probe).failure(pairs) if pairs else ""
    if not reason:
        return {}
    if len(pairs) == 1:
        return {pairs[0].name: reason}
    apart = (_wrong(probe, [x], choice) for x in layers)
    return {name: why for found in apart for name, why in found.items()}


def _given_sizes(
    model: nn.Module,
    example: tuple[Tensor, ...],
    run: Run,
    space: SearchSpace,
    architecture: Architecture,
) -> dict[_Size, tuple[int, int, int]] | None:
    """Of each size what it was, what it is to be, and what the code gives; None if it fails."""
    now = {key: size for key, (_, size) in space.resized(architecture).items()}
    found: dict[_Size, tuple[int, int, int]] = {}

    def put_right(name: str, sizes: tuple[int, ...]) -> list[int]:
        before = run.sizes.get(name, ())
        if len(before) != len(sizes):
            return list(sizes)
        right = []
        for place, (was, size) in enumerate(zip(before, sizes, strict=True)):
            right.append(now.get((name, place), was) if was != INFERRED else INFERRED)
            found[name, place] = (was, right[-1], size)
        return right

    without = SearchSpace(
        tuple(replace(x, group=x.group and replace(x.group, extents=())) for x in space.layers)
    )
    try:
        small = materialise(model, without, architecture, share=True)
        with evaluating(small), watching(small, lambda *_: None, put_right):
            forward(small, single(example))
    except BROKEN:
        return None
    return found
