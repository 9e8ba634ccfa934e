"""The tensors in what a network returns, however it is packed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def make_known(output: Any) -> None:
    """Tells torch how to take apart dataclasses in a network's output.

    torch knows lists, tuples and dicts, and what a library registered. Its exporter asks for every
    other class to be registered, once for each process.
    """
    for leaf in tree_leaves(output):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            make_known(output)  # fields may hold others
            return


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in a network's output, in their order."""
    make_known(output)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
