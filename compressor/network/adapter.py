"""How a network is read into a search space, and where adapters are found."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Protocol

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


def find_adapter(name: str) -> Adapter:
    """The adapter registered under `name`, or the class of `package.module:Class`.

    Raises:
        UsageError: there is none; names those there are.
    """
    if ":" in name:
        return _import(name)
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
