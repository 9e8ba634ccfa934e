"""Runs a network again without repeating the part of it that has not changed.

Refitting layer after layer, and scoring candidates that differ in late layers only, would run the
same first layers on the same images over and over. `trace_calls` learns from one forward pass in
which order modules are called and who reads their outputs; `Replay` then keeps the outputs that
the rest of the network still needs, and hands them out instead of computing them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compressor.network.counting import evaluating, forward
from compressor.network.data import Inputs, device_of, on


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass; ticks count beginnings and ends of calls.

    Attributes:
        start, end: ticks.
        readers: for each operator that reads the output, the modules that were running then;
            None where the output is no tensor, so that its readers are not known.
    """

    start: int
    end: int
    readers: frozenset[frozenset[str]] | None


@dataclass(frozen=True)
class Calls:
    """What one forward pass called: modules that ran exactly once, by name.

    Modules that changed an input in place, or returned a view of one, are left out: handing out
    a copy would not do the same. So are modules that left a tensor behind besides their output,
    in an attribute or through a hook, for others to read: it would be the one of another batch.
    """

    once: Mapping[str, Call]

    def before(self, name: str) -> tuple[str, ...]:
        """Outermost modules that had ended when the named one began, in order."""
        return self.ended(self.once[name].start)

    def needed(self, name: str, done: frozenset[str]) -> bool:
        """Whether anything outside of the finished modules reads the output of one of them."""
        readers = self.once[name].readers
        return readers is None or any(not running & done for running in readers)

    def ended(self, tick: int) -> tuple[str, ...]:
        """Outermost modules that had ended before a tick, in order."""
        found: list[str] = []
        last = -1
        for name, call in sorted(self.once.items(), key=lambda item: item[1].start):
            if name and call.end < tick and call.start > last:
                found.append(name)
                last = call.end
        return tuple(found)


def trace_calls(model: nn.Module, example: Inputs) -> Calls:
    """Runs the network once, in evaluation mode, and notes the calls of its modules."""
    watcher = _Watcher()
    names = {id(module): name for name, module in model.named_modules()}
    with ExitStack() as stack:
        for module in model.modules():
            name = names[id(module)]
            stack.callback(module.register_forward_pre_hook(watcher.begin(name)).remove)
            # Hooks of others run after a replayed `forward` too: they are outside of the module.
            hook = module.register_forward_hook(watcher.finish(name), prepend=True)
            stack.callback(hook.remove)
        with evaluating(model), torch.no_grad(), watcher:
            forward(model, on(device_of(model), example))
    return watcher.calls()


class Replay:
    """Forward passes of one network whose first modules are remembered, for each batch.

    The modules are made to return what they returned before, so the network must be the caller's
    own, and the weights of finished modules must not change while they are remembered.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Calls,
        prefix: Replay | None = None,
        done: Iterable[str] = (),
    ) -> None:
        """Remembers nothing yet.

        Args:
            model: runs; the caller's own.
            calls: of its modules.
            prefix: remembers the first modules of the same network for longer than this does.
            done: what the prefix may remember.
        """
        self.model = model
        self._prefix, self._prefixed = prefix, frozenset(done)
        self._calls = calls
        self._modules = dict(model.named_modules())
        self._kept: dict[str, dict[Hashable, Any]] = {}

    def run(self, batch: Hashable, inputs: Inputs, done: Iterable[str]) -> Any:
        """The network's output; what `done` names is computed once for each batch.

        Args:
            batch: stands for the inputs.
            inputs: of the network, on its device.
            done: outermost finished modules, from `Calls`; may only grow from call to call until
                `forget`.
        """
        finished = frozenset(done)
        with ExitStack() as stack:
            if self._prefix is not None:
                stack.callback(self._prefix._tidy, batch, self._prefixed)
                stack.enter_context(self._prefix._patched(batch, self._prefixed))
            stack.callback(self._tidy, batch, finished)
            stack.enter_context(self._patched(batch, finished))
            return self.model(*inputs)

    def keep(self, done: Iterable[str]) -> None:
        """Forgets what modules outside of `done` returned; their weights may then change."""
        wanted = frozenset(done)
        self._kept = {name: kept for name, kept in self._kept.items() if name in wanted}

    def numel(self) -> int:
        """Numbers that are held in memory, over all batches."""
        values = (v for kept in self._kept.values() for v in kept.values())
        leaves = (x for v in values for x in tree_leaves(v) if isinstance(x, Tensor))
        return sum(x.untyped_storage().nbytes() // x.element_size() for x in leaves)

    @contextmanager
    def _patched(self, batch: Hashable, finished: frozenset[str]) -> Iterator[None]:
        names = {*finished, *(n for n, kept in self._kept.items() if batch in kept)}
        names &= self._modules.keys()  # of a network that may lack blocks
        with ExitStack() as stack:
            for name in names:
                remembered = self._remembering(name, batch, finished)
                stack.enter_context(_forwarding(self._modules[name], remembered))
            yield

    def _remembering(
        self, name: str, batch: Hashable, finished: frozenset[str]
    ) -> Callable[..., Any]:
        compute = self._modules[name].forward  # of the instance: others may have patched it

        def remembered(*args: Any, **kwargs: Any) -> Any:
            kept = self._kept.setdefault(name, {})
            if batch not in kept:
                out = compute(*args, **kwargs)
                needed = self._calls.needed(name, finished)
                # What follows may work in place, on what is handed out or on what is kept.
                kept[batch] = tree_map(_copy if needed else _ghost, out)
                return out
            return tree_map(_copy, kept[batch])

        return remembered

    def _tidy(self, batch: Hashable, finished: frozenset[str]) -> None:
        """Drops what lies inside finished modules, and values that nobody reads any more."""
        for name, kept in self._kept.items():
            if batch not in kept:
                continue
            if name not in finished:
                del kept[batch]
            elif not self._calls.needed(name, finished):
                kept[batch] = tree_map(_ghost, kept[batch])


@contextmanager
def _forwarding(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Makes a module run another function; afterwards it is as it was, patches included."""
    before = {key: value for key, value in vars(module).items() if key == "forward"}
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(before)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and not _is_ghost(value) else value


def _ghost(value: Any) -> Any:
    """Shape and type of a tensor whose values nobody reads, without its memory."""
    return value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value


def _is_ghost(value: Tensor) -> bool:
    return value.dim() > 0 and value.numel() > 1 and not any(value.stride())


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes when modules begin and end, which operators read their outputs, what they leave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tick = 0
        self._running: list[str] = []
        self._begun: dict[str, int] = {}
        self._count: Counter[str] = Counter()
        self._ended: dict[str, int] = {}
        self._inputs: list[list[tuple[Tensor, int]]] = []
        self._makers: dict[int, list[str]] = {}
        self._readers: dict[str, set[frozenset[str]] | None] = {}
        self._inside: dict[int, frozenset[str]] = {}  # where a tensor may be read, if not all over
        self._leaking: set[str] = set()
        self._alive: list[Tensor] = []  # an id may not come back while the pass runs

    def begin(self, name: str) -> Callable[..., None]:
        """A forward pre-hook."""

        def hook(_: nn.Module, args: Any) -> None:
            self._count[name] += 1
            self._begun[name] = self._tick
            self._running.append(name)
            self._inputs.append([(x, x._version) for x in _tensors(args)])
            self._tick += 1

        return hook

    def finish(self, name: str) -> Callable[..., Any]:
        """A forward hook."""

        def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
            self._read(out)  # returning is reading: nobody else may read what the network returns
            # Tells the output from the same tensor in an attribute, which is not handed out again.
            handed = tree_map(_alias, out)
            self._tick += 1
            self._running.pop()
            if not _shares(out, self._inputs.pop()):
                self._ended[name] = self._tick - 1
            self._readers[name] = set() if isinstance(out, Tensor) else None
            if isinstance(out, Tensor):
                self._makers.setdefault(id(handed), []).append(name)
            for value in _tensors(handed):
                self._inside[id(value)] = self._inside.get(id(value), frozenset()) - {name}
                self._alive.append(value)
            return handed

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._read((args, kwargs))
        out = func(*args, **(kwargs or {}))
        running = frozenset(self._running)
        for value in _tensors(out):  # one that was there before has been changed in place
            self._inside[id(value)] = self._inside.get(id(value), frozenset()) | running
            self._alive.append(value)
        return out

    def calls(self) -> Calls:
        """Modules that ran once and whose output may be handed out again."""
        found = {}
        for name, end in self._ended.items():
            if self._count[name] == 1 and name not in self._leaking:
                readers = self._readers[name]
                frozen = None if readers is None else frozenset(readers)
                found[name] = Call(self._begun[name], end, frozen)
        return Calls(found)

    def _read(self, values: Any) -> None:
        running = frozenset(self._running)
        for value in _tensors(values):
            self._leaking |= self._inside.get(id(value), frozenset()) - running
            for name in self._makers.get(id(value), ()):
                readers = self._readers[name]
                if readers is not None:
                    readers.add(running)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors in nested containers; data classes need not be known to torch."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors([getattr(leaf, field.name) for field in fields(leaf)])


def _alias(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _shares(out: Any, inputs: list[tuple[Tensor, int]]) -> bool:
    """Whether an input was changed in place, or lives on in the output."""
    places = {x.untyped_storage().data_ptr() for x, _ in inputs}
    changed = any(x._version != version for x, version in inputs)
    return changed or any(x.untyped_storage().data_ptr() in places for x in _tensors(out))
