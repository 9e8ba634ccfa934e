"""Candidate networks put together from pieces, in milliseconds.

Copying a network and cutting the copy costs more than running it on a few images. An `Assembler`
holds one copy and swaps the tensors of those modules that differ from what it was last; tensors
that were cut or refitted once are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.network.blocks import Bypasses
from compressor.network.patches import from_matrix
from compressor.network.sized import Sizes
from compressor.network.structure import agree, cut_tensors, set_tensor, through_tensors
from compressor.refit.consumers import Consumer, Fit, rest
from compressor.space import Architecture, Block, SearchSpace

_MEMORY = 16  # pieces are forgotten when they hold so many times the numbers of the network


class Assembler:
    """Builds any architecture of a space on one network of its own.

    Attributes:
        network: what was assembled last, in evaluation mode.
        original: the architecture of the original.
    """

    def __init__(
        self, model: nn.Module, space: SearchSpace, consumers: Mapping[str, Consumer]
    ) -> None:
        """Copies the network once.

        Args:
            model: the original network; not touched.
            space: its search space.
            consumers: refitted where they lose inputs; may be empty.
        """
        self.network = copy.deepcopy(model).eval().requires_grad_(False)
        self.original = space.original
        self._model = model
        self._space = space
        self._consumers = consumers
        self._owners = dict(self.network.named_modules(remove_duplicate=False))
        self._sizes = Sizes(self.network)
        self._blocks = {i: layer.block for i, layer in enumerate(space.layers) if layer.block}
        self._bypasses = Bypasses(self.network, self._blocks.values())
        self._through = through_tensors(space)
        self._fed = {c.norm: name for name, c in consumers.items() if c.norm is not None}
        self._deciders = self._who_decides()
        self._now: dict[str, Architecture | None] = {
            path: self._key(path, space.original) for path in self._deciders
        }
        self._pieces: dict[tuple[str, Architecture], dict[str, Tensor]] = {}
        self._room = _MEMORY * sum(p.numel() for p in model.parameters())
        self._held = 0

    def assemble(self, architecture: Architecture, leave: Container[str] = ()) -> nn.Module:
        """The network of an architecture; valid until the next call; see `spoil` for changing it.

        Blocks that are left out are passed by; `compressor.network.blocks.drop` takes them out.
        Every kept value is that of the original, except for the weights of refitted consumers
        and the constants and variances that follow them.

        Args:
            architecture: of the network.
            leave: spoiled modules that stay as the caller has made them.
        """
        dropped = self.dropped(architecture)
        for path in self._deciders:
            if (self._now[path] is None and path in leave) or _inside(dropped, path):
                continue
            key = self._key(path, architecture)
            if key != self._now[path]:
                self._install(path, self._piece(path, key, architecture))
                self._now[path] = key
        self._sizes.set(self._space.resized(architecture))
        self._bypasses.set(dropped)
        return self.network

    def dropped(self, architecture: Architecture) -> tuple[Block, ...]:
        """Blocks that an architecture leaves out."""
        return self._space.dropped(architecture)

    def spoil(self, paths: Iterable[str]) -> None:
        """Says which modules the caller has changed; they are put in anew next time.

        Args:
            paths: any modules of the network.
        """
        for path in paths:
            # One that no choice changes is decided by nothing: it has a single piece.
            self._deciders.setdefault(path, ())
            self._now[path] = None

    def changed(self, one: Architecture, other: Architecture) -> set[str]:
        """Paths of the modules in which two architectures differ, and of blocks that one lacks."""
        blocks = {b.module for i, b in self._blocks.items() if one[i] != other[i]}
        gone = (*self.dropped(one), *self.dropped(other))
        return blocks | {
            p
            for p in self._deciders
            if self._key(p, one) != self._key(p, other) and not _inside(gone, p)
        }

    def _who_decides(self) -> dict[str, tuple[int, ...]]:
        """For each module that can change, the search layers that change it."""
        found: dict[str, set[int]] = {}
        for number, layer in enumerate(self._space.layers):
            tensors = [c.tensor for c in layer.group.couplings] if layer.group else []
            tensors += [layer.kernel.tensor] if layer.kernel else []
            for tensor in tensors:
                found.setdefault(tensor.rpartition(".")[0], set()).add(number)
        for norm, consumer in self._fed.items():
            found.setdefault(norm, set()).update(found.get(consumer, ()))
        return {path: tuple(sorted(numbers)) for path, numbers in found.items()}

    def _key(self, path: str, architecture: Architecture) -> Architecture:
        return tuple(architecture[i] for i in self._deciders[path])

    def _install(self, path: str, piece: Mapping[str, Tensor]) -> None:
        owner = self._owners[path]
        for leaf, tensor in piece.items():
            # A network that is handed on may be trained: the original's tensors must stay.
            set_tensor(owner, leaf, tensor.clone())
        original = self._model.get_submodule(path)
        agree(owner, original, through=f"{path}.weight" in self._through)

    def _piece(self, path: str, key: Architecture, architecture: Architecture) -> dict[str, Tensor]:
        """All tensors of a module that any choice changes, for the choices of its deciders."""
        piece = self._pieces.get((path, key))
        if piece is None:
            piece = self._cut(path, architecture)
            self._held += sum(t.numel() for t in piece.values())
            if self._held > self._room:
                self._pieces.clear()
                self._held = sum(t.numel() for t in piece.values())
            self._pieces[path, key] = piece
        return piece

    def _cut(self, path: str, architecture: Architecture) -> dict[str, Tensor]:
        deciders = self._deciders[path]
        space = replace(self._space, layers=tuple(self._space.layers[i] for i in deciders))
        choices = tuple(architecture[i] for i in deciders)
        original = self._model.get_submodule(path)
        piece = {n: t.detach() for n, t in original.named_parameters(recurse=False)}
        piece |= {n: t.detach() for n, t in original.named_buffers(recurse=False)}
        prefix = f"{path}." if path else ""
        for name, tensor in cut_tensors(self._model, space, choices).items():
            if name.rpartition(".")[0] == path:
                piece[name.removeprefix(prefix)] = tensor
        self._refit(path, piece, space, choices)
        return piece

    def _shaped(self, path: str, weight: Tensor) -> nn.Module:
        """A stand-in for a module, with a weight of another shape."""
        original = self._model.get_submodule(path)
        shaped = copy.copy(original)
        shaped._parameters = dict(original._parameters)
        set_tensor(shaped, "weight", weight)
        agree(shaped, original, through=f"{path}.weight" in self._through)
        return shaped

    def _refit(
        self, path: str, piece: dict[str, Tensor], space: SearchSpace, choices: Architecture
    ) -> None:
        """Puts refitted values into a piece: a consumer's weight, and the constant after it."""
        name = self._fed.get(path, path)
        consumer = self._consumers.get(name)
        fit = None if consumer is None else _fit(consumer, space, choices)
        if consumer is None or fit is None:
            return
        dim = 1 - consumer.input_dim
        rows = rest(len(fit.weight), space.removed(choices).get((f"{name}.weight", dim), set()))
        if path == name:
            shaped = self._shaped(path, piece["weight"])
            piece["weight"] = from_matrix(shaped, fit.weight[rows]).to(piece["weight"])
            if fit.constant is not None and consumer.norm is None:
                piece["bias"] = piece["bias"] + fit.constant[rows].to(piece["bias"])
        elif fit.constant is not None and "running_mean" in piece:
            mean, variance = piece["running_mean"], piece["running_var"]
            piece["running_mean"] = mean - fit.constant[rows].to(mean)
            piece["running_var"] = variance * fit.share[rows].to(variance)


def _inside(blocks: Sequence[Block], path: str) -> bool:
    return any(block.holds(path) for block in blocks)


def _fit(consumer: Consumer, space: SearchSpace, choices: Architecture) -> Fit | None:
    """The refitted weight; None where the consumer keeps all of its inputs."""
    tensor = f"{consumer.name}.weight"
    gone = frozenset(space.removed(choices).get((tensor, consumer.input_dim), ()))
    kernel = space.kernels(choices).get(tensor)
    if not gone and kernel is None:
        return None
    with torch.no_grad():
        return consumer.refitted(consumer.kept(gone, kernel))
