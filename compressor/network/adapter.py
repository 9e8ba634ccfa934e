"""How a network is read into a search space, and where adapters are found."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.space import SearchSpace

GROUP = "compressor.adapters"


class Adapter(Protocol):
    """Reads a network into search layers."""

    def read(self, model: nn.Module, example: tuple[Tensor, ...]) -> SearchSpace:
        """Describes what may be cut.

        Args:
            model: the pretrained network; must come back untouched, modes and gradients included.
            example: inputs that the network accepts, `[N, …]`.

        Returns:
            Search layers in forward order, and what is frozen with the reason. Whoever uses the
            space proves every layer first (`compressor.network.verify`), so a mistake here costs
            choices, not correctness.

        Raises:
            AdapterError: the network cannot be read at all.
        """


@runtime_checkable
class DropsBlocks(Protocol):
    """An adapter that can also find blocks to leave out as a whole."""

    def dropping_blocks(self) -> Adapter:
        """The same adapter, whose spaces have a layer for each block that can be left out."""


def find_adapter(name: str, *, drop_blocks: bool = False) -> Adapter:
    """The adapter registered under `name`, or the class of `package.module:Class`.

    Args:
        name: of the adapter.
        drop_blocks: whether it is to find blocks that can be left out.

    Raises:
        UsageError: there is none, or it finds no blocks; names those there are.
    """
    adapter = _import(name) if ":" in name else _registered(name)
    if not drop_blocks:
        return adapter
    if not isinstance(adapter, DropsBlocks):
        raise UsageError(
            "blocks can be dropped only by an adapter that finds them, with a method "
            f"dropping_blocks(), but {name!r} has none; leave dropping blocks out, or use the "
            "adapter 'generic'"
        )
    return adapter.dropping_blocks()


def _registered(name: str) -> Adapter:
    found = {e.name: e for e in entry_points(group=GROUP)}
    if name not in found:
        raise UsageError(
            f"an adapter must be one of {', '.join(sorted(found)) or 'none registered'}, or "
            f"package.module:Class, but got {name!r}; adapters register as entry points of "
            f"{GROUP!r}"
        )
    adapter: Adapter = found[name].load()()
    return adapter


def _import(path: str) -> Adapter:
    module, _, attribute = path.partition(":")
    try:
        adapter: Adapter = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f"an adapter's path must name a class that takes no arguments, but {path!r} "
            f"gave {type(error).__name__}: {error}"
        ) from error
    return adapter
