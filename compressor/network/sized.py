"""Sizes that a model's code writes out, and other sizes in their place.

Code such as `x.reshape(n, tokens, 3, self.heads, -1)` knows how wide its network was. The smaller
network runs the same code, so these numbers are replaced on their way to the operator. A call is
known by its module and by its place among such calls of the module's own code, those of its
submodules aside: `blocks.0.attn@2`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from compressor.errors import ArchitectureError
from compressor.network.sized_calls import SizedCall, read_call
from compressor.space import Extent

Note: TypeAlias = Callable[[str, SizedCall, Any], None]


@contextmanager
def watching(model: nn.Module, note: Note) -> Iterator[None]:
    """Tells of every call in a forward pass: its name, the call, and what it returned."""
    running: list[list[Any]] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: running.append([path, 0])

    def leave(*_: object) -> None:
        running.pop()

    def handle(call: SizedCall) -> Any:
        out = call.run(call.sizes)
        if running:
            running[-1][1] += 1
            note("{}@{}".format(*running[-1]), call, out)
        return out

    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(path)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        with _Calls(handle):
            yield
    finally:
        for hook in handles:
            hook.remove()


Resized: TypeAlias = Mapping[tuple[str, int], tuple[Extent, int]]


def resize(model: nn.Module, resized: Resized) -> None:
    """Makes a network's code pass on other sizes than it writes out, from now on; see `Sizes`."""
    Sizes(model).set(resized)


class Sizes:
    """The sizes that a network's code passes on; hooks are added to the modules with such code."""

    def __init__(self, model: nn.Module, right: set[tuple[str, int]] | None = None) -> None:
        """Changes nothing yet.

        Args:
            model: whose tensors are cut.
            right: takes the keys of sizes that are right as the code gives them.
        """
        self._modules = dict(model.named_modules())
        self._right = right
        self._resizers: dict[str, _Resizer] = {}

    def set(self, resized: Resized) -> None:
        """Passes on these sizes and no others.

        Args:
            resized: extents with their sizes now; those that are not `written` are passed over.

        Raises:
            ArchitectureError: there is no such module.
        """
        changes: dict[str, dict[int, dict[int, tuple[int, int]]]] = {}
        for (name, dim), (extent, now) in resized.items():
            if extent.written:
                path, _, place = name.rpartition("@")
                self._check(name, path, place)
                calls = changes.setdefault(path, {})
                calls.setdefault(int(place), {})[dim] = (extent.shape[extent.dim], now)
        for path in {*changes, *self._resizers}:
            if path not in self._resizers:
                self._resizers[path] = _attached(self._modules[path], path, self._right)
            self._resizers[path].changes = changes.get(path, {})

    def _check(self, name: str, path: str, place: str) -> None:
        if path not in self._modules or not place.isdecimal():
            raise ArchitectureError(
                f"the search space names the call {name!r}, but this model has no module "
                f"{path!r}; use the model that the space was read from"
            )


def _attached(module: nn.Module, path: str, right: set[tuple[str, int]] | None) -> _Resizer:
    resizer = _Resizer(path, {}, right)
    # What is cut a second time was cut before: the new sizes are for what comes out of the old.
    module.register_forward_pre_hook(resizer.enter, prepend=True)
    module.register_forward_hook(resizer.leave, always_call=True)
    for child in module.children():
        child.register_forward_pre_hook(resizer.pause)
        child.register_forward_hook(resizer.resume, always_call=True)
    return resizer


@dataclass
class _Resizer:
    """Replaces the sizes of some calls of a module's own code.

    Attributes:
        path: of the module.
        changes: by the place of the call and of the size: what it was, and what it is now.
        right: takes the keys of sizes that the code gets right by itself.
    """

    path: str
    changes: Mapping[int, Mapping[int, tuple[int, int]]]
    right: set[tuple[str, int]] | None = None
    _open: list[Any] = field(default_factory=list)
    _paused: int = 0

    def enter(self, *_: object) -> None:
        """Before the module runs."""
        place = 0

        def handle(call: SizedCall) -> Any:
            nonlocal place
            if self._paused:
                return call.run(call.sizes)
            place += 1
            return call.run(self._sizes(place, call.sizes))

        self._open.append(_Calls(handle))
        self._open[-1].__enter__()

    def leave(self, *_: object) -> None:
        """After it, whether or not it raised."""
        self._open.pop().__exit__(None, None, None)

    def pause(self, *_: object) -> None:
        """Before a submodule runs."""
        self._paused += 1

    def resume(self, *_: object) -> None:
        """After it."""
        self._paused -= 1

    def _sizes(self, place: int, given: tuple[int, ...]) -> tuple[int, ...]:
        sizes = list(given)
        for dim, (whole, now) in self.changes.get(place, {}).items():
            sizes[dim] = self._size((f"{self.path}@{place}", dim), given[dim], whole, now)
        return tuple(sizes)

    def _size(self, key: tuple[str, int], given: int, whole: int, now: int) -> int:
        """The size in place of a given one, which may hold the batch as a factor."""
        if isinstance(given, int) and given == now:
            if self.right is not None:
                self.right.add(key)
            return given
        if isinstance(given, int) and given % whole:
            raise ArchitectureError(
                f"a size that the code of {self.path!r} writes out must be {whole} or a multiple "
                f"of it, but the call {key[0]!r} got {given}; run it as when it was compressed"
            )
        return given // whole * now


class _Calls(TorchFunctionMode):
    """Hands calls that are told sizes to a handler, which runs them."""

    def __init__(self, handle: Callable[[SizedCall], Any]) -> None:
        super().__init__()
        self._handle = handle

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _ATTENTION(*args, **kwargs)
        call = read_call(func, args, kwargs)
        return func(*args, **kwargs) if call is None else self._handle(call)


def _opened(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that does not hand itself over, so that the calls in it are seen."""
    assert isinstance(func, types.FunctionType)  # noqa: S101  (it is written in Python)
    names = func.__globals__ | {"has_torch_function": lambda *_: False}
    opened = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


_ATTENTION = _opened(functional.multi_head_attention_forward)
