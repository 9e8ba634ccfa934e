"""What an encoder makes of inputs: what the head reads, as one vector for each input."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.errors import DataError
from compressor.network.data import Inputs, size_of


class Watch:
    """Sees what the heads read in every forward pass inside the block, gradients included.

    A map `[N, channels, height, width]` is averaged over its positions and a sequence
    `[N, length, width]` over its length; what several heads read, or one that is called several
    times, comes one after the other.
    """

    def __init__(self, model: nn.Module, heads: Sequence[str]) -> None:
        """Looks at the modules of these paths once the block is entered."""
        self._model, self._heads = model, tuple(heads)
        self._seen: list[tuple[str, Tensor]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Watch:
        self._hooks.append(self._model.register_forward_pre_hook(self._begin))
        for path in self._heads:
            module = self._model.get_submodule(path)
            self._hooks.append(
                module.register_forward_pre_hook(
                    lambda _, given, named, path=path: self._see(path, given, named),
                    with_kwargs=True,
                )
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._seen.clear()

    def embedding(self, inputs: Inputs) -> Tensor:
        """Of the inputs that the network was called with last, `[N, width]`, float32.

        Raises:
            DataError: no head was called, or one read a tensor that is no vector for each input.
        """
        if not self._seen:
            raise DataError(
                "the embedding of an input is what the head reads, but the network never called "
                f"{', '.join(map(repr, self._heads))} with a tensor; name a module that it calls "
                "as the head, or transfer nothing"
            )
        size = size_of(inputs)
        parts = [_pooled(path, tensor, size) for path, tensor in self._seen]
        return torch.cat(parts, dim=1).float()

    def _begin(self, *_: Any) -> None:
        self._seen.clear()

    def _see(self, path: str, given: Any, named: Any) -> None:
        self._seen += [
            (path, x)
            for x in tree_leaves((given, named))
            if isinstance(x, Tensor) and x.is_floating_point()
        ]


def embedded(model: nn.Module, heads: Sequence[str], inputs: Inputs) -> Tensor:
    """The embedding of some inputs by a network in the mode that it is in, `[N, width]`."""
    with Watch(model, heads) as watch:
        model(*inputs)
        return watch.embedding(inputs)


def _pooled(path: str, tensor: Tensor, size: int) -> Tensor:
    if tensor.dim() < 2 or len(tensor) != size:
        raise DataError(
            f"the embedding of an input is what the head reads, but {path!r} reads a tensor "
            f"{list(tensor.shape)} for {size} inputs; name a head that reads [inputs, …], or "
            "transfer nothing"
        )
    if tensor.dim() == 2:
        return tensor
    return tensor.mean(1) if tensor.dim() == 3 else tensor.flatten(2).mean(2)
