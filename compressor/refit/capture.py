"""What one module of the original and of the pruned network see in a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from compressor.network.counting import evaluating
from compressor.network.data import Inputs
from compressor.network.replay import Calls, Replay
from compressor.network.tracing import Fate, Stop, SumWatcher


@dataclass(frozen=True)
class Seen:
    """Input and output of a module, and what a sum adds to the output."""

    x: Tensor
    y: Tensor
    other: Tensor | None


@dataclass(frozen=True)
class Pair:
    """The original and the pruned network, each run from where it is still to be refitted.

    `fates` are those of the original's modules: the pruned network may lack some sums.
    """

    original: Replay
    small: Replay
    calls: Calls
    fates: Mapping[str, Fate]
    seen: dict[tuple[str, int], Seen] | None

    def was(self, number: int, inputs: Inputs, name: str) -> Seen:
        """What a module of the original saw, for one batch."""
        fate = self.fates[name]
        if self.seen is None:
            return self._look(self.original, number, inputs, name, fate)
        if (name, number) not in self.seen:
            found = self._look(self.original, number, inputs, name, fate)
            self.seen[name, number] = replace(found, x=found.x.new_empty(0))  # never read again
        return self.seen[name, number]

    def now(self, number: int, inputs: Inputs, name: str, fate: Fate) -> Seen:
        """What the same module of the pruned network sees."""
        return self._look(self.small, number, inputs, name, fate)

    def _look(self, replay: Replay, number: int, inputs: Inputs, name: str, fate: Fate) -> Seen:
        done = self.calls.before(name)
        return capture(replay.model, name, fate, partial(replay.run, number, inputs, done))


def capture(model: nn.Module, name: str, fate: Fate, run: Callable[[], object]) -> Seen:
    """What a module sees while `run` runs the network; nothing after that is run."""
    found: list[tuple[Tensor, Tensor]] = []
    watcher = None if fate.addend is None else SumWatcher(fate.addend, fate.position)

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((args[0].clone(), output.clone()))
        if watcher is None:
            raise Stop
        watcher.armed = True

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        with watcher or contextlib.nullcontext():
            run()
    except Stop:
        pass
    finally:
        handle.remove()
    x, y = found[0]
    return Seen(x, y, None if watcher is None else watcher.operand)


def ticks_until_seen(model: nn.Module, name: str, fate: Fate, run: Callable[[], object]) -> int:
    """How many calls of modules begin and end until all that a module sees is known."""
    ticks = 0

    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1

    with contextlib.ExitStack() as stack, evaluating(model), torch.no_grad():
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(tick).remove)
            stack.callback(module.register_forward_hook(tick).remove)
        capture(model, name, fate, run)
    return ticks
