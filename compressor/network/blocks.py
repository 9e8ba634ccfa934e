"""Networks without some of their blocks, and blocks that contribute nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ArchitectureError
from compressor.space import Block


class Dropped(nn.Module):
    """In place of a block: passes on its first input, whatever else it is given."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A copy: what follows may work in place, and others may still read the input."""
        return _pass_on(x, *args, **kwargs)


def _pass_on(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.clone()


def drop(model: nn.Module, blocks: Iterable[Block]) -> None:
    """Takes blocks out of a network, in place.

    Raises:
        ArchitectureError: the network has no such module.
    """
    for block in blocks:
        put(model, block.module, Dropped().train(_module(model, block).training))


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of another."""
    parent, _, leaf = path.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module


class Bypasses:
    """Blocks of one network that are passed by, and may come back: the modules stay in place.

    So whoever knows the modules of the network, to replay what they returned, knows them still.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[Block]) -> None:
        """Passes by none yet.

        Raises:
            ArchitectureError: the network has no such module.
        """
        self._modules = {block.module: _module(model, block) for block in blocks}
        self._own = {path: vars(m).get("forward") for path, m in self._modules.items()}

    def set(self, blocks: Iterable[Block]) -> None:
        """Passes by these blocks and no others."""
        gone = {block.module for block in blocks}
        for path, module in self._modules.items():
            forward = _pass_on if path in gone else self._own[path]
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


@contextmanager
def silenced(model: nn.Module, blocks: Iterable[Block]) -> Iterator[None]:
    """All numbers of some blocks are zero inside the `with`; their values come back exactly.

    Raises:
        ArchitectureError: the network has no such module.
    """
    tensors = [t for block in blocks for t in numbers(_module(model, block))]
    saved = [t.detach().clone() for t in tensors]
    try:
        with torch.no_grad():
            for tensor in tensors:
                tensor.zero_()
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)


def silence(model: nn.Module, blocks: Iterable[Block]) -> None:
    """Sets all numbers of some blocks to zero, in place; raises as `silenced` does."""
    with torch.no_grad():
        for block in blocks:
            for tensor in numbers(_module(model, block)):
                tensor.zero_()


def numbers(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are not indices or masks."""
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]


def _module(model: nn.Module, block: Block) -> nn.Module:
    try:
        return model.get_submodule(block.module)
    except AttributeError as error:
        raise ArchitectureError(
            f"the search space names the block {block.module!r}, which this model does not have; "
            "use the model that the space was read from"
        ) from error
