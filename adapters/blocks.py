"""Residual blocks that can be left out: found by what they do, whatever they are called.

With all its numbers at zero, a residual block hands on what it reads. So a module whose output has
the shape of its input is run on its own input once more, with zeros for its numbers. Where an
activation ends the block, as in ResNets, that still holds for what such a block reads: the output
of another activation. No names are looked at, and no classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.network.blocks import numbers, silenced
from compressor.network.counting import Tracer, evaluating, forward, product_name, single, tracing
from compressor.network.proof import tell_channels_apart
from compressor.space import Block, Choice, Frozen, SearchLayer

_ROUNDING = 1e-5  # of the scale of what a block reads


@dataclass
class _Seen:
    """Calls of one module: how often, with what, and between which products."""

    calls: int = 0
    args: tuple[Any, ...] = ()
    products: tuple[int, int] = (0, 0)
    fits: bool = False


@dataclass
class Blocks:
    """What was found.

    Attributes:
        layers: one for each block, in forward order.
        frozen: why there is none, or why one is not a choice.
    """

    layers: list[SearchLayer] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)


def find_blocks(model: nn.Module, example: tuple[Tensor, ...]) -> Blocks:
    """The innermost modules that a network can do without.

    Such a module runs once in a forward pass, makes of one tensor another of the same shape and
    type, and consists of modules with numbers; with zeros for all of them it returns its input.

    Args:
        model: the network; not touched.
        example: inputs `[N, …]`; the first of the batch is used.
    """
    found = Blocks()
    copied = copy.deepcopy(model).eval()
    tell_channels_apart(copied)  # a block that starts as nothing must be seen to do something
    seen, tracer = _watched(copied, single(example))
    owned = _owners(copied)
    between = {p.name for p in tracer.count(copied).products if not p.of}
    residual: list[str] = []
    # Inner modules come after those that hold them, so that the last ones are looked at first.
    for path, module in reversed(list(copied.named_modules())):
        inside = any(other.startswith(f"{path}.") for other in residual)
        if path and not inside and seen[path].fits and _passes_on(copied, path, seen[path]):
            residual.append(path)
            shared = _shared(module, path, owned)
            if shared:
                found.frozen.append(Frozen(path, f"kept as a block: {shared}"))
                continue
            first, last = seen[path].products
            names = (product_name(call) for call in range(first + 1, last + 1))
            products = tuple(name for name in names if name in between)
            choices = (Choice(kept=False), Choice(kept=True))
            block = Block(path, products)
            found.layers.append(SearchLayer(path, (path,), choices, block=block))
    if not residual:
        reason = "no module hands on what it reads when its numbers are zero: none can be dropped"
        found.frozen.append(Frozen("all blocks", reason))
    found.layers.reverse()
    found.frozen.reverse()
    return found


def _watched(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[dict[str, _Seen], Tracer]:
    """What every module of a forward pass was given and returned."""
    seen = {path: _Seen() for path, _ in model.named_modules()}
    with ExitStack() as stack, evaluating(model):
        tracer = stack.enter_context(tracing())

        def watch(note: _Seen, module: nn.Module) -> None:
            def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                note.calls += 1
                note.args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
                note.fits = note.calls == 1 and _one_tensor(args, kwargs)
                note.products = (tracer.calls, tracer.calls)

            def end(_: nn.Module, __: object, out: Any) -> None:
                note.products = (note.products[0], tracer.calls)
                note.fits = note.fits and isinstance(out, Tensor) and _alike(out, note.args[0])
                note.args = note.args if note.fits else ()

            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end).remove)

        for path, module in model.named_modules():
            hooked = not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
            if path and hooked and any(True for _ in module.children()) and numbers(module):
                watch(seen[path], module)
        forward(model, inputs)
    return seen, tracer


def _one_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a module was called with one tensor, at the first place."""
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    return len(tensors) == 1 and len(args) > 0 and tensors[0] is args[0]


def _alike(out: Tensor, x: Tensor) -> bool:
    real = out.is_floating_point() and out.numel() > 0
    return real and out.shape == x.shape and out.dtype == x.dtype


def _passes_on(model: nn.Module, path: str, seen: _Seen) -> bool:
    """Whether a module does something, and nothing without its numbers."""
    x, module = _lively(seen.args[0]), model.get_submodule(path)
    try:
        with torch.no_grad():
            if torch.equal(module(x.clone(), *seen.args[1:]), x):
                return False
        with silenced(model, [Block(path)]), torch.no_grad():
            out = module(x.clone(), *seen.args[1:])
    except (RuntimeError, ValueError, IndexError, AttributeError, TypeError):
        return False  # it divides by its numbers, or keeps them in a way that cannot be changed
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return False
    gap, scale = float((out - x).abs().max()), float(x.abs().max())
    return gap <= _ROUNDING * scale


def _lively(x: Tensor) -> Tensor:
    """What a block reads, and noise on it: an example of zeros shows nothing.

    No number falls below zero where none was, so that what an activation lets pass still passes.
    """
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    noise = noise * max(1.0, float(x.abs().max()))
    return x + (noise.abs() if bool((x >= 0).all()) else noise)


def _owners(model: nn.Module) -> dict[int, set[str]]:
    """Paths of the modules that hold each parameter or buffer."""
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            owners.setdefault(id(tensor), set()).add(path)
    return owners


def _shared(module: nn.Module, path: str, owners: Mapping[int, set[str]]) -> str:
    """Which other part of the network holds a tensor of a module, in words; empty if none."""
    for tensor in (*module.parameters(), *module.buffers()):
        for other in sorted(owners[id(tensor)]):
            if other != path and not other.startswith(f"{path}."):
                return f"{other or 'the network itself'!r} holds a tensor of it as well"
    return ""
