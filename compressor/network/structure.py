"""From an architecture to a network: masked, for proofs, and materialised, for use."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.coupling import Role
from compressor.errors import ArchitectureError
from compressor.network.blocks import drop, silence, silenced
from compressor.network.sized import resize
from compressor.network.statistics import leave_out, leaving_out
from compressor.space import Architecture, SearchSpace


def materialise(
    model: nn.Module, space: SearchSpace, architecture: Architecture, *, share: bool = False
) -> nn.Module:
    """Builds the smaller network of an architecture.

    Args:
        model: the original network; not touched.
        space: how the network may be cut.
        architecture: one option per search layer.
        share: whether parameters and buffers that are not cut are those of `model`, not copies:
            for a network that is only run.

    Returns:
        A new module of the same class in the mode of `model`, whose tensors hold only what is
        kept; instead of a block that is left out it has a module that passes on its input. Every
        kept value is unchanged, and has the name that it had.

    Raises:
        ArchitectureError: the architecture is not of this space, or the space not of this model.
    """
    own = [*model.parameters(), *model.buffers()] if share else []
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in own})
    owners, through = _owners(small), through_tensors(space)
    touched: dict[str, nn.Module] = {}
    for name, tensor in cut_tensors(model, space, architecture).items():
        owner, leaf = _owner(owners, name)
        set_tensor(owner, leaf, tensor)
        touched[name.rpartition(".")[0]] = owner
    for path, owner in touched.items():
        agree(owner, model.get_submodule(path), through=f"{path}.weight" in through)
    drop(small, space.dropped(architecture))
    resize(small, space.resized(architecture))
    return small


def cut_tensors(
    model: nn.Module, space: SearchSpace, architecture: Architecture
) -> dict[str, Tensor]:
    """What is kept of every tensor that the architecture cuts, by name; copies.

    Raises:
        ArchitectureError: the architecture is not of this space, or the space not of this model.
    """
    owners = _owners(model)
    found: dict[str, Tensor] = {}
    for (name, dim), gone in space.removed(architecture).items():
        owner, leaf = _owner(owners, name)
        tensor = found.get(name, getattr(owner, leaf).detach())
        _check_positions(name, tensor, dim, gone)
        keep = [i for i in range(tensor.shape[dim]) if i not in gone]
        index = torch.tensor(keep, dtype=torch.long, device=tensor.device)
        found[name] = tensor.index_select(dim, index)
    for name, kernel in space.kernels(architecture).items():
        owner, leaf = _owner(owners, name)
        tensor = found.get(name, getattr(owner, leaf).detach())
        found[name] = tensor[_centre(tensor, kernel)].clone()
    return found


def through_tensors(space: SearchSpace) -> set[str]:
    """Tensors that act on each channel alone."""
    return {name for (name, _), role in _roles(space).items() if role is Role.THROUGH}


def mask(model: nn.Module, space: SearchSpace, architecture: Architecture) -> nn.Module:
    """The original network with what is removed contributing nothing.

    Masked means: the slices of the *consumers'* weights that read removed channels are zero, and
    so are the outer rings of cropped kernels, and all numbers of blocks that are left out; means
    and other statistics over channels, as normalisations take them, leave the removed ones out.
    `model` is not touched; a copy is returned.
    """
    copied = copy.deepcopy(model)
    _zero(copied, space, architecture)
    silence(copied, space.dropped(architecture))
    leave_out(copied, space.left_out(architecture))
    return copied


@contextmanager
def masked(model: nn.Module, space: SearchSpace, architecture: Architecture) -> Iterator[None]:
    """Masks the network in place for the time of the block; values come back exactly."""
    names = _masked_names(space, architecture)
    owners = _owners(model)
    saved = {}
    for name in names:
        owner, leaf = _owner(owners, name)
        saved[name] = getattr(owner, leaf).detach().clone()
    try:
        _zero(model, space, architecture)
        left_out, dropped = space.left_out(architecture), space.dropped(architecture)
        with leaving_out(model, left_out), silenced(model, dropped):
            yield
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                owner, leaf = _owner(owners, name)
                getattr(owner, leaf).copy_(values)


def _masked_names(space: SearchSpace, architecture: Architecture) -> list[str]:
    consumed = [name for (name, _), role in _roles(space).items() if role is Role.CONSUMED]
    return sorted({*consumed, *space.kernels(architecture)})


def _zero(model: nn.Module, space: SearchSpace, architecture: Architecture) -> None:
    owners, roles = _owners(model), _roles(space)
    with torch.no_grad():
        for (name, dim), gone in space.removed(architecture).items():
            if roles[name, dim] is Role.CONSUMED:
                owner, leaf = _owner(owners, name)
                tensor = getattr(owner, leaf)
                index = torch.tensor(sorted(gone), dtype=torch.long, device=tensor.device)
                tensor.index_fill_(dim, index, 0.0)
        for name, kernel in space.kernels(architecture).items():
            owner, leaf = _owner(owners, name)
            tensor = getattr(owner, leaf)
            inner = torch.zeros_like(tensor)
            centre = _centre(tensor, kernel)
            inner[centre] = tensor[centre]
            tensor.copy_(inner)


def _roles(space: SearchSpace) -> Mapping[tuple[str, int], Role]:
    return {
        (c.tensor, c.dim): c.role
        for layer in space.layers
        if layer.group
        for c in layer.group.couplings
    }


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not stored as well, under all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))


def _owner(owners: Mapping[str, nn.Module], name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    owner = owners.get(path)
    if owner is None or {**owner._parameters, **owner._buffers}.get(leaf) is None:
        raise ArchitectureError(
            f"the search space names the tensor {name!r}, which this model does not have; "
            "use the model that the space was read from"
        )
    return owner, leaf


def _check_positions(name: str, tensor: Tensor, dim: int, gone: set[int]) -> None:
    """What lies outside of a tensor would be skipped in silence, and the cut be another one."""
    size = tensor.shape[dim] if 0 <= dim < tensor.dim() else 0
    outside = [place for place in gone if not 0 <= place < size]
    if outside or not size:
        raise ArchitectureError(
            f"the search space cuts position {max(gone, default=0)} of dimension {dim} of "
            f"{name!r}, which is {list(tensor.shape)} in this model; use the model that the space "
            "was read from"
        )


def set_tensor(owner: nn.Module, leaf: str, values: Tensor) -> None:
    """Puts a parameter or buffer of another shape into a module."""
    old = getattr(owner, leaf)
    if leaf in owner._parameters:
        values = values.contiguous()
        owner._parameters[leaf] = nn.Parameter(values, requires_grad=old.requires_grad)
    else:
        owner._buffers[leaf] = values.contiguous()


def _centre(weight: Tensor, kernel: int) -> tuple[slice, ...]:
    ring = [(size - kernel) // 2 for size in weight.shape[2:]]
    return (slice(None), slice(None), *(slice(r, r + kernel) for r in ring))


def agree(owner: nn.Module, original: nn.Module, *, through: bool) -> None:
    """Makes a module's attributes agree with the shapes of its tensors.

    Args:
        owner: a module whose tensors were cut.
        original: the module before any cut.
        through: whether its weight acts on each channel alone, so that groups go with channels.
    """
    if isinstance(owner, _ConvNd) and isinstance(original, _ConvNd):
        rows = owner.weight.shape[0] if through else original.weight.shape[0]
        owner.groups = original.groups * rows // original.weight.shape[0]
        if not isinstance(original.padding, str):
            # a cropped kernel needs less padding for an output of the same size
            sizes = zip(original.weight.shape[2:], owner.weight.shape[2:], strict=True)
            rings = [(before - after) // 2 for before, after in sizes]
            owner.padding = tuple(
                p - r * d
                for p, r, d in zip(original.padding, rings, original.dilation, strict=True)
            )
    _refresh(owner)


def _refresh(module: nn.Module) -> None:
    """Makes a module's attributes agree with the shapes of its tensors."""
    match module:
        case _ConvTransposeNd():
            module.in_channels = module.weight.shape[0]
            module.out_channels = module.weight.shape[1] * module.groups
            module.kernel_size = tuple(module.weight.shape[2:])
        case _ConvNd():
            module.out_channels = module.weight.shape[0]
            module.in_channels = module.weight.shape[1] * module.groups
            module.kernel_size = tuple(module.weight.shape[2:])
            _refresh_padding(module)
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case _NormBase():
            module.num_features = _first_size(module)
        case nn.GroupNorm():
            module.num_channels = module.weight.shape[0]
        case nn.LayerNorm():
            module.normalized_shape = tuple(module.weight.shape)
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.MultiheadAttention():
            reads = module.in_proj_weight if module._qkv_same_embed_dim else module.q_proj_weight
            module.embed_dim = reads.shape[1]
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case _:
            pass  # raw parameters of a user's own module carry no derived attribute


def _refresh_padding(module: _ConvNd) -> None:
    """Convolutions keep their padding a second time, for the padding modes other than zeros."""
    if isinstance(module.padding, str):
        reversed_padding = [0, 0] * len(module.kernel_size)
        for i, (d, k) in enumerate(zip(module.dilation, module.kernel_size, strict=True)):
            total = d * (k - 1)
            at = 2 * (len(module.kernel_size) - 1 - i)
            reversed_padding[at : at + 2] = [total // 2, total - total // 2]
        if module.padding == "valid":
            reversed_padding = [0, 0] * len(module.kernel_size)
        module._reversed_padding_repeated_twice = reversed_padding
    else:
        module._reversed_padding_repeated_twice = [
            p for p in reversed(module.padding) for _ in range(2)
        ]


def _first_size(module: nn.Module) -> int:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and tensor.dim() == 1:
            return int(tensor.shape[0])
    raise ArchitectureError(f"{type(module).__name__} has no per-channel tensor to cut")
