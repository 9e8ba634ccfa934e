"""What becomes of a convolution's output: which BatchNorm reads it, which sum it enters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compressor.network.counting import evaluating, forward
from compressor.network.data import Inputs, device_of, on

_aten = torch.ops.aten
_PRODUCTS = {_aten.convolution, _aten.addmm, _aten.mm, _aten.linear}
_NORMS = {
    _aten.native_batch_norm, _aten._native_batch_norm_legit_no_training, _aten.batch_norm,
    _aten.cudnn_batch_norm, _aten.miopen_batch_norm,
}  # fmt: skip
_SUMS = {_aten.add, _aten.add_}
_CLIPS = {_aten.relu, _aten.relu_, _aten.hardtanh, _aten.hardtanh_}


@dataclass(frozen=True)
class Fate:
    """What the output of a module goes through next.

    Attributes:
        norm: path of the BatchNorm that reads it, or None.
        addend: number of the sum, among all sums after the module ran, that adds the (normalised)
            output to something else; None where there is none.
        position: which operand of that sum the *other* addend is.
        calls: how often a forward pass applies the module.
        clip: between which two numbers the (normalised) output is clipped next, as by a ReLU;
            None where it is not, or where anything else reads it too.
        before: how many sums there were before the module ran.
    """

    norm: str | None = None
    addend: int | None = None
    position: int = 0
    calls: int = 1
    clip: tuple[float, float] | None = None
    before: int = field(default=0, compare=False)

    def without(self, sums: Sequence[range]) -> Fate:
        """The same where a forward pass lacks some sums, by their numbers among all of them."""
        if self.addend is None:
            return self
        number = self.before + self.addend
        if any(number in gone for gone in sums):
            return replace(self, addend=None, position=0)
        fewer = sum(place in gone for gone in sums for place in range(self.before, number))
        return replace(self, addend=self.addend - fewer)


class FateTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Follows outputs of weights through BatchNorm into sums, for one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fates: dict[str, Fate] = {}
        self._owners = {
            p.untyped_storage().data_ptr(): name.rpartition(".")[0]
            for name, p in model.named_parameters()
            if name.endswith("weight")
        }
        self._made: dict[int, tuple[str, Tensor]] = {}
        self._reads: Counter[str] = Counter()
        self._bare: dict[int, str] = {}  # outputs as they are made
        self._bare_reads: Counter[str] = Counter()
        self._order: dict[str, int] = {}
        self._sums_before: dict[str, int] = {}
        self._sums = 0

    def fates(self) -> dict[str, Fate]:
        """By name, in the order of execution.

        Whatever reads an output beside the clip sees what the clip takes away. And a BatchNorm
        that several outputs go through cannot take up the constant of one of them, nor one beside
        which somebody else reads the output.
        """
        norms = Counter(fate.norm for fate in self._fates.values() if fate.norm is not None)
        found = {}
        for name, fate in self._fates.items():
            if self._reads[name] != 1 + (fate.norm is not None):
                fate = replace(fate, clip=None)  # noqa: PLW2901  (the same fate, knowing more)
            shared = fate.norm is not None and (norms[fate.norm] > 1 or self._bare_reads[name] > 1)
            known = Fate(calls=fate.calls) if shared else fate
            found[name] = replace(known, before=self._sums_before[name])
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self._reads.update({self._made[key][0] for key in leaves if key in self._made})
        self._bare_reads.update({self._bare[key] for key in leaves if key in self._bare})
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            self._product(args, out)
        elif packet in _NORMS:
            self._norm(args, out[0] if isinstance(out, tuple) else out)
        elif packet in _SUMS:
            self._sum(args)
            self._sums += 1
        else:
            self._other(func, args)
        return out

    def _other(self, func: Any, args: Any) -> None:
        """Notes a clip; what is changed in place is no longer the module's output."""
        first = id(args[0]) if args else 0
        made = self._made.get(first)
        if made is None:
            return
        fate = self._fates[made[0]]
        if func.overloadpacket in _CLIPS and fate.addend is None and fate.calls == 1:
            self._fates[made[0]] = replace(fate, clip=_bounds(func.overloadpacket, args))
        if func._schema.is_mutable:
            del self._made[first]
            self._bare.pop(first, None)

    def _product(self, args: Any, out: Tensor) -> None:
        for operand in args:
            name = isinstance(operand, Tensor) and self._owners.get(
                operand.untyped_storage().data_ptr()
            )
            if name and name in self._fates:
                # A module that runs twice has no single fate.
                self._fates[name] = Fate(calls=self._fates[name].calls + 1)
            elif name:
                self._fates[name] = Fate()
                self._order.setdefault(name, len(self._order))
                self._sums_before[name] = self._sums
                self._made[id(out)] = (name, out)
                self._bare[id(out)] = name

    def _norm(self, args: Any, out: Tensor) -> None:
        made = self._made.get(id(args[0]))
        weight = args[1]
        if made and isinstance(weight, Tensor):
            norm = self._owners.get(weight.untyped_storage().data_ptr())
            self._fates[made[0]] = Fate(norm=norm)
            self._made[id(out)] = (made[0], out)

    def _sum(self, args: Any) -> None:
        sides = [(i, self._made.get(id(a))) for i, a in enumerate(args[:2])]
        if not all(isinstance(a, Tensor) for a in args[:2]) or args[0].shape != args[1].shape:
            return
        known = [(self._order[made[0]], i, made[0]) for i, made in sides if made]
        if known:
            _, position, name = max(known)
            fate = self._fates[name]
            number = self._sums - self._sums_before[name]
            self._fates[name] = Fate(fate.norm, number, 1 - position)


def _bounds(packet: Any, args: Any) -> tuple[float, float]:
    if packet in (_aten.relu, _aten.relu_):
        return 0.0, math.inf
    low = args[1] if len(args) > 1 else -1.0
    high = args[2] if len(args) > 2 else 1.0
    return float(low), float(high)


def trace_fates(model: nn.Module, example: Inputs) -> dict[str, Fate]:
    """Where the output of each module's weight goes, in the order of execution.

    Modules whose weight is used without calling them (as attention does with its projections)
    are left out, and those that are called with more than their input: nothing could be learned
    from their inputs.
    """
    tracer = FateTracer(model)
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) == 1 and not kwargs:
            calls[module] += 1

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        with evaluating(model), torch.no_grad(), tracer:
            forward(model, on(device_of(model), example))
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules(remove_duplicate=False))
    return {n: fate for n, fate in tracer.fates().items() if calls[modules[n]] == fate.calls}


def trace_sums(model: nn.Module, example: Inputs, paths: Sequence[str]) -> dict[str, range]:
    """Which sums, by their numbers among all of a forward pass, are made inside of each module.

    Args:
        model: run once, in evaluation mode.
        example: inputs `[N, …]`.
        paths: of modules that run once.
    """
    counter = _SumCounter()
    found: dict[str, range] = {}

    def watch(path: str) -> Iterator[Any]:
        module = model.get_submodule(path)
        first: list[int] = []
        yield module.register_forward_pre_hook(lambda *_: first.append(counter.sums))
        yield module.register_forward_hook(
            lambda *_: found.__setitem__(path, range(first[0], counter.sums))
        )

    handles = [handle for path in paths for handle in watch(path)]
    try:
        with evaluating(model), torch.no_grad(), counter:
            forward(model, on(device_of(model), example))
    finally:
        for handle in handles:
            handle.remove()
    return found


class _SumCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts sums as `FateTracer` and `SumWatcher` do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sums = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sums += func.overloadpacket in _SUMS
        return out


class SumWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Keeps one operand of the n-th sum after it was armed, then stops the pass."""

    def __init__(self, number: int, position: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operand: Tensor | None = None
        self.armed = False
        self._number, self._position, self._sums = number, position, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.armed and func.overloadpacket in _SUMS:
            if self._sums == self._number:
                self.operand = args[self._position].clone()
                raise Stop
            self._sums += 1
        return func(*args, **(kwargs or {}))


class Stop(Exception):  # noqa: N818  (no error: ends a forward pass that has shown enough)
    """Ends a forward pass early."""
