"""Refits a pruned network in sequence, on its own activations, to answer like the original.

Every convolution and linear layer after the first cut is solved again by ridge least squares: its
inputs are what the pruned network really feeds it, its targets are what the original computes
there. Where its output enters a sum (a residual connection), the target also makes up for what
the other addend has drifted by. No labels, no gradients.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from compressor.network.counting import evaluating
from compressor.network.data import Batches, Inputs, device_of, on
from compressor.network.patches import input_dim, refittable
from compressor.network.replay import Replay, trace_calls
from compressor.network.tracing import Fate, trace_fates, trace_sums
from compressor.progress import Event, Progress, silent
from compressor.refit.capture import Pair, Seen, ticks_until_seen
from compressor.refit.consumers import rest
from compressor.refit.relevance import Relevance, relevance
from compressor.refit.step import Step
from compressor.space import Architecture, Block, SearchSpace

_NEVER = sys.maxsize
_NEXT = 3  # layers behind a block that is left out


def refit(
    model: nn.Module,
    small: nn.Module,
    space: SearchSpace,
    architecture: Architecture,
    example: Inputs,
    calibration: Batches,
    progress: Progress = silent,
) -> None:
    """Refits all of `small` in place, as `Refitter.whole` does."""
    Refitter(model, space, example, calibration).whole(small, architecture, progress)


class Refitter:
    """Refits pruned networks of one original, in sequence and in place.

    Attributes:
        calls: of the original's modules.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        example: Inputs,
        calibration: Batches,
        *,
        remember: bool = False,
    ) -> None:
        """Traces the original.

        Args:
            model: the original network; not touched.
            space: its search space.
            example: inputs `[N, …]`.
            calibration: batches; read once for each refitted layer.
            remember: whether what the original answers is kept in memory for the next network,
                instead of being computed again. For few images.
        """
        self._model = model
        self._space = space
        self._calibration = calibration
        self._fates = trace_fates(model, example)
        self.calls = trace_calls(model, example)
        # Replay makes modules answer from memory, which the caller's network must not do.
        self._original = Replay(copy.deepcopy(model), self.calls)
        self._seen: dict[tuple[str, int], Seen] | None = {} if remember else None
        self._example = on(device_of(model), example)
        self._known: dict[str, int] = {}
        blocks = [layer.block.module for layer in space.layers if layer.block]
        self._sums = trace_sums(model, example, blocks) if blocks else {}

    def whole(
        self, small: nn.Module, architecture: Architecture, progress: Progress = silent
    ) -> None:
        """Refits every layer from the first one that lost inputs, or a block before it.

        Args:
            small: the network of `architecture`, as materialised or from the library.
            architecture: what was cut.
            progress: told after each layer.
        """
        cut, dropped = self._cut(architecture), self._space.dropped(architecture)
        changed = (n in cut or _inside(dropped, n) for n in self._fates)
        first = next((i for i, new in enumerate(changed) if new), len(self._fates))
        names = [n for n in list(self._fates)[first:] if self._can(n) and not _inside(dropped, n)]
        relevant = self._relevant(names, progress)
        self._solve(small, architecture, names, progress, relevant)

    def _relevant(self, names: Sequence[str], progress: Progress) -> Relevance | None:
        """Where answers matter; None, all alike, where the network has no gradients."""
        if not names:
            return None
        try:
            return relevance(self._model, names, self._calibration)
        except RuntimeError as error:
            progress(Event("refit", 0, len(names), f"all positions weigh the same: {error}"))
            return None

    def consumers(
        self,
        small: nn.Module,
        architecture: Architecture,
        since: int = 0,
        replay: Replay | None = None,
    ) -> None:
        """Refits only the layers that lost inputs, or a block just before them, `touched`.

        Far cheaper than `whole`, and enough to tell which of two architectures is better.

        Args:
            small: the network of `architecture`.
            architecture: what was cut.
            since: layers that begin before this tick of `calls` are left as they are.
            replay: of `small`; remembers nothing that ended since then.
        """
        names = [n for n in self._consumers(architecture) if self._begins(n) >= since]
        self._solve(small, architecture, names, silent, roughly=True, replay=replay)

    def since(self, changed: Iterable[str]) -> int:
        """The first tick of `calls` from which on a refit differs where some modules differ.

        What a layer is refitted to is known when the sum that its output enters is done, so
        modules that run before that count too.
        """
        paths = list(changed)
        names = [n for n in self._fates if self._can(n)]
        # Without the block that holds its BatchNorm, a layer before it is refitted otherwise.
        blocks = [Block(path) for path in paths if path in self._sums]
        paths += [n for n in names if _inside(blocks, self._fates[n].norm or "")]
        if any(path not in self.calls.once for path in (*paths, *names)):
            return 0
        tick = min((self._begins(path) for path in paths), default=_NEVER)
        while earlier := [self._begins(n) for n in names if self._begins(n) < tick < self._ends(n)]:
            tick = min(earlier)
        return tick

    def _begins(self, name: str) -> int:
        call = self.calls.once.get(name)
        return 0 if call is None else call.start

    def _ends(self, name: str) -> int:
        """When all that a layer is refitted to is known."""
        if name not in self._known:
            fate = self._fates[name]
            run = partial(self._original.run, "example", self._example, ())
            self._known[name] = ticks_until_seen(self._original.model, name, fate, run)
        return self._known[name]

    def touched(self, architecture: Architecture, since: int = 0) -> tuple[str, ...]:
        """Modules that `consumers` changes: layers that lost inputs, and BatchNorms behind them."""
        names = [n for n in self._consumers(architecture) if self._begins(n) >= since]
        dropped = self._space.dropped(architecture)
        norms = [norm for n in names if (norm := self._fate(n, dropped).norm) is not None]
        return (*names, *norms)

    def _consumers(self, architecture: Architecture) -> list[str]:
        dropped = self._space.dropped(architecture)
        cut = self._cut(architecture) | self._behind(dropped)
        return [n for n in self._fates if n in cut and self._can(n) and not _inside(dropped, n)]

    def _behind(self, dropped: Sequence[Block]) -> set[str]:
        """Layers next to what is left out: up to the first whose output enters a sum again.

        What a block adds to a sum they can make up for best.
        """
        found: set[str] = set()
        left = 0
        for name in self._fates:
            if _inside(dropped, name):
                left = _NEXT
            elif left:
                found.add(name)
                left = 0 if self._fates[name].addend is not None else left - 1
        return found

    def _fate(self, name: str, dropped: Sequence[Block]) -> Fate:
        """What becomes of a layer's output in a network without some blocks."""
        fate = self._fates[name]
        if fate.norm is not None and _inside(dropped, fate.norm):
            return Fate(calls=fate.calls)
        return fate.without([self._sums[block.module] for block in dropped])

    def _solve(
        self,
        small: nn.Module,
        architecture: Architecture,
        names: Sequence[str],
        progress: Progress,
        relevant: Relevance | None = None,
        *,
        roughly: bool = False,
        replay: Replay | None = None,
    ) -> None:
        removed, dropped = self._space.removed(architecture), self._space.dropped(architecture)
        replay = replay or Replay(small, self.calls)
        pair = Pair(self._original, replay, self.calls, self._fates, self._seen)
        self._original.keep(())
        with evaluating(self._original.model), evaluating(small), torch.no_grad():
            for i, name in enumerate(names):
                module = self._model.get_submodule(name)
                dim = 1 - input_dim(module)
                gone = removed.get((f"{name}.weight", dim), set())
                rows = rest(cast(Tensor, module.weight).shape[dim], gone)
                rows = rows.to(device_of(small))
                step = Step(pair, name, self._fate(name, dropped), rows, roughly, relevant)
                step.solve(self._calibration)
                progress(Event("refit", i + 1, len(names), name))

    def _can(self, name: str) -> bool:
        module = self._model.get_submodule(name)
        # Its outputs follow the same dimension of its weight as its inputs.
        turned = isinstance(module, _ConvTransposeNd) and module.groups > 1
        return self._fates[name].calls == 1 and not turned and not refittable(module)

    def _cut(self, architecture: Architecture) -> set[str]:
        """Modules that lose inputs or a part of their kernel."""
        cut = {tensor.rpartition(".")[0] for tensor in self._space.kernels(architecture)}
        for tensor, dim in self._space.removed(architecture):
            name, _, leaf = tensor.rpartition(".")
            known = leaf == "weight" and name in self._fates
            if known and dim == input_dim(self._model.get_submodule(name)):
                cut.add(name)
        return cut


def _inside(blocks: Sequence[Block], path: str) -> bool:
    return any(block.holds(path) for block in blocks)
