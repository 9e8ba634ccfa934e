"""Sizes that a model's code writes out, and other sizes in their place.

Code such as `x.reshape(n, tokens, 3, self.heads, -1)` knows how wide its network was. The smaller
network runs the same code, so these numbers are replaced on their way to the operator. A call is
known by its module and by its place among such calls of the module's own code, those of its
submodules aside: `blocks.0.attn@2`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from compressor.errors import ArchitectureError
from compressor.network.sized_calls import SizedCall, read_call
from compressor.space import Extent

Note: TypeAlias = Callable[[str, SizedCall, Any], None]
Given: TypeAlias = Callable[[str, tuple[int, ...]], Sequence[int]]


@contextmanager
def watching(model: nn.Module, note: Note, given: Given = lambda _, sizes: sizes) -> Iterator[None]:
    """Tells of every call in a forward pass: its name, the call, and what it returned.

    Args:
        model: whose code makes the calls.
        note: is told.
        given: sizes to run a call with, from its name and those that the code gives.
    """
    running: list[list[Any]] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: running.append([path, 0])

    def leave(*_: object) -> None:
        running.pop()

    def handle(call: SizedCall) -> Any:
        if not running:
            return call.run(call.sizes)
        running[-1][1] += 1
        name = "{}@{}".format(*running[-1])
        out = call.run(given(name, call.sizes))
        note(name, call, out)
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
    """The sizes that a network's code passes on, which may change with what is cut.

    A module with such code becomes of a class of its own, derived from what it was.
    """

    def __init__(self, model: nn.Module) -> None:
        """Changes nothing yet; the model is the one whose tensors are cut."""
        self._modules = dict(model.named_modules())
        self._resizers: dict[str, _Resizer] = {}

    def set(self, resized: Resized) -> None:
        """Passes on these sizes and no others.

        Args:
            resized: extents with their sizes now; those that are not `written` are passed over.

        Raises:
            ArchitectureError: there is no such call.
        """
        changes: dict[str, dict[int, _Change]] = {}
        for (name, dim), (extent, now) in resized.items():
            if extent.written:
                path, _, place = name.rpartition("@")
                self._check(name, path, place)
                none = _Change(len(extent.shape), {})
                change = changes.setdefault(path, {}).setdefault(int(place), none)
                change.sizes[dim] = (extent.shape[extent.dim], now, not extent.per_unit)
        for path in {*changes, *self._resizers}:
            if path not in self._resizers:
                self._resizers[path] = _attached(self._modules[path], path)
            self._resizers[path].changes = changes.get(path, {})

    def _check(self, name: str, path: str, place: str) -> None:
        if path not in self._modules or not place.isdecimal():
            raise ArchitectureError(
                f"the search space names the call {name!r}, but this model has no module "
                f"{path!r} or its calls have no such numbers; use the model that the space was "
                "read from"
            )


@dataclass(frozen=True)
class _Change:
    """Other sizes for one call.

    Attributes:
        count: how many sizes it is told.
        sizes: by place what it was, what it is now, and whether the code derives it from what may
            shrink otherwise.
    """

    count: int
    sizes: dict[int, tuple[int, int, bool]]


@dataclass
class _Frame:
    """One run of a module's forward: the calls so far, and how many submodules are running."""

    place: int = 0
    inside: int = 0


class _Resizer:
    """Replaces the sizes of some calls of a module's own code."""

    def __init__(self, path: str) -> None:
        """Changes nothing yet; the path is that of the module."""
        self.changes: Mapping[int, _Change] = {}
        self._path = path
        self._running = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _running=threading.local())

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the module's forward runs.

        Raises:
            ArchitectureError: the code took another way than when the network was read.
        """
        if not self.changes:
            yield
            return
        frames, frame = self._frames(), _Frame()
        frames.append(frame)
        try:
            with _Calls(self._handled):
                yield
        finally:
            frames.pop()
        if frame.place < max(self.changes):
            raise ArchitectureError(
                f"the code of {self._path!r} must make the calls that it made when the network was "
                f"read, the last of them number {max(self.changes)}, but made {frame.place}; "
                "compress the network as it will be run, in the same mode and with the same inputs"
            )

    def step_in(self, *_: object) -> None:
        """Before a submodule runs."""
        for frame in self._frames()[-1:]:
            frame.inside += 1

    def step_out(self, *_: object) -> None:
        """After it."""
        for frame in self._frames()[-1:]:
            frame.inside -= 1

    def _frames(self) -> list[_Frame]:
        if not hasattr(self._running, "frames"):
            self._running.frames = []
        frames: list[_Frame] = self._running.frames
        return frames

    def _handled(self, call: SizedCall) -> Any:
        frame = self._frames()[-1]
        if frame.inside:
            return call.run(call.sizes)
        frame.place += 1
        change = self.changes.get(frame.place)
        if change is None:
            return call.run(call.sizes)
        name, sizes = f"{self._path}@{frame.place}", list(call.sizes)
        if len(sizes) != change.count:
            raise ArchitectureError(
                f"the call {name!r} was told {change.count} sizes when the network was read, but "
                f"is told {len(sizes)}; run it in the same mode and with the same inputs"
            )
        for dim, (whole, now, derived) in change.sizes.items():
            sizes[dim] = self._size(name, sizes[dim], whole, now, derived)
        return call.run(sizes)

    def _size(self, name: str, given: int, whole: int, now: int, derived: bool) -> int:
        """The size in place of a given one, which may hold the batch as a factor."""
        if isinstance(given, torch.SymInt):  # of a batch that a graph leaves open
            return given // whole * now
        value = int(given)  # under torch.jit.trace it is a tensor
        if value == now or (derived and (value < 1 or value % whole)):
            return now
        if value % whole:
            raise ArchitectureError(
                f"a size that the code of {self._path!r} writes out must be {whole} or a multiple "
                f"of it, but the call {name!r} got {value}; run it as when it was compressed"
            )
        return given // whole * now


class _Resized:
    """Mixed into the class of a module whose code is passed other sizes."""

    _resizers: list[_Resizer]

    def __reduce_ex__(self, _: Any) -> Any:
        return _blank, (type(self).__mro__[2],), self.__dict__


@functools.cache
def _resized(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a module with other sizes; its forward has the same arguments."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            # What is cut a second time was cut before: its sizes are for what the first ones make.
            for resizer in reversed(self._resizers):
                stack.enter_context(resizer.running())
            return kind.forward(self, *args, **kwargs)

    own = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (_Resized, kind), {**own, "forward": forward})


def _blank(kind: type[nn.Module]) -> nn.Module:
    """An empty module with other sizes, for copies and for pickle."""
    made = _resized(kind)  # type: ignore[arg-type]  # mypy takes a class for its instance
    module: nn.Module = made.__new__(made)
    return module


def _attached(module: nn.Module, path: str) -> _Resizer:
    resizer = _Resizer(path)
    if not isinstance(module, _Resized):
        module.__class__ = _resized(type(module))  # type: ignore[arg-type]  # as above
        module._resizers = []  # type: ignore[assignment]  # a plain attribute
    module._resizers.append(resizer)  # type: ignore[operator,union-attr]
    for inner in list(module.modules())[1:]:
        inner.register_forward_pre_hook(resizer.step_in, prepend=True)
        inner.register_forward_hook(resizer.step_out, always_call=True)
    return resizer


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
