"""Reads torch-pruning's dependency groups into couplings. The only importer of torch_pruning.

torch-pruning traces the network through autograd and answers: which rows and columns of which
modules go when channel `r` of a root layer goes. Its answer is read once, as data; none of its
pruning is used, and nothing it says is trusted before `compressor.network.verify` has proved it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from adapters.groups import Member, RawGroup
from adapters.limits import USUAL, Limits, within
from compressor.coupling import Role
from compressor.errors import AdapterError


def read_groups(
    model: nn.Module, example: tuple[Tensor, ...], limits: Limits = USUAL
) -> list[RawGroup]:
    """All dependency groups of a network, in torch-pruning's order.

    Args:
        model: not touched; the graph is built on a copy, with gradients on.
        example: inputs `[N, …]`.
        limits: of time and memory for the graph.

    Raises:
        AdapterError: the network cannot be copied, or torch-pruning cannot trace it in time.
    """
    try:
        copied = copy.deepcopy(model).eval()
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        graph, raw = within(limits, partial(_graph, copied, example))
    except Exception as error:
        raise AdapterError(
            "the generic adapter needs a network that can be copied and traced by torch-pruning, "
            f"but got {type(error).__name__}: {error}"
        ) from error
    names = {id(module): name for name, module in copied.named_modules()}
    parameters = {id(p): name for name, p in copied.named_parameters()}
    return [_read_group(graph, group, names, parameters) for group in raw]


def _graph(copied: nn.Module, example: tuple[Tensor, ...]) -> tuple[Any, list[Any]]:
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(copied, example_inputs=example, verbose=False)
        return graph, list(graph.get_all_groups())


def _read_group(
    graph: Any, group: Any, names: Mapping[int, str], parameters: Mapping[int, str]
) -> RawGroup:
    width = len(group[0].idxs)
    modules: list[str] = []
    members: list[Member] = []
    try:
        for item in group:
            target = item.dep.target.module
            name = names.get(id(target)) or parameters.get(id(target))
            if name is None:
                continue  # an operator without parameters
            modules.append(name)
            positions = _positions(item, width, name)
            out = graph.is_out_channel_pruning_fn(item.dep.handler)
            if isinstance(target, nn.Parameter):
                dim = int(item.dep.target.pruning_dim)
                members.append(Member(name, dim % target.dim(), Role.THROUGH, positions))
            else:
                members.extend(_members(name, target, positions, out))
    except AdapterError as error:
        return RawGroup(tuple(dict.fromkeys(modules)), width, (), str(error))
    return RawGroup(tuple(dict.fromkeys(modules)), width, tuple(members))


def _positions(item: Any, width: int, name: str) -> tuple[tuple[int, ...], ...]:
    found: list[set[int]] = [set() for _ in range(width)]
    for position, root in zip(item.idxs, item.root_idxs, strict=True):
        if root is None or not 0 <= int(root) < width:
            raise AdapterError(f"the channels of {name!r} cannot be traced back to their origin")
        found[int(root)].add(int(position))
    return tuple(tuple(sorted(places)) for places in found)


def _members(
    name: str, module: nn.Module, positions: tuple[tuple[int, ...], ...], out: bool
) -> Iterator[Member]:
    """What a module's tensors lose with each channel."""
    match module:
        case _ConvNd():
            yield from _convolution(name, module, positions, out)
        case nn.Linear():
            yield from _dense(name, module, positions, out, rows=0)
        case _NormBase() | nn.GroupNorm() | nn.LayerNorm():
            if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
                raise AdapterError(f"{name!r} normalises over several dimensions")
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, leaf, None) is not None:
                    yield Member(f"{name}.{leaf}", 0, Role.THROUGH, positions)
        case nn.PReLU():
            if module.num_parameters > 1:
                yield Member(f"{name}.weight", 0, Role.THROUGH, positions)
        case _ if any(True for _ in module.parameters()):
            raise AdapterError(f"{name!r} is a {type(module).__name__}, which is kept whole")


def _convolution(
    name: str, module: _ConvNd, positions: tuple[tuple[int, ...], ...], out: bool
) -> Iterator[Member]:
    transposed = isinstance(module, _ConvTransposeNd)
    groups = module.groups
    if groups == 1:
        yield from _dense(name, module, positions, out, rows=1 if transposed else 0)
    elif groups == module.in_channels == module.out_channels:
        yield Member(f"{name}.weight", 0, Role.THROUGH, positions)
        if module.bias is not None:
            yield Member(f"{name}.bias", 0, Role.THROUGH, positions)
    elif transposed:
        raise AdapterError(f"{name!r} is a grouped transposed convolution, which is kept whole")
    elif out:
        period = module.out_channels // groups
        yield Member(f"{name}.weight", 0, Role.PRODUCED, positions, period)
        if module.bias is not None:
            yield Member(f"{name}.bias", 0, Role.PRODUCED, positions, period)
    else:
        period = module.in_channels // groups
        yield Member(f"{name}.weight", 1, Role.CONSUMED, positions, period, folds=True)


def _dense(
    name: str, module: nn.Module, positions: tuple[tuple[int, ...], ...], out: bool, rows: int
) -> Iterator[Member]:
    if out:
        yield Member(f"{name}.weight", rows, Role.PRODUCED, positions)
        if module.bias is not None:
            yield Member(f"{name}.bias", 0, Role.PRODUCED, positions)
    else:
        yield Member(f"{name}.weight", 1 - rows, Role.CONSUMED, positions)
