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
from compressor.space import Architecture, SearchSpace


def materialise(model: nn.Module, space: SearchSpace, architecture: Architecture) -> nn.Module:
    """Builds the smaller network of an architecture.

    Args:
        model: the original network; not touched.
        space: how the network may be cut.
        architecture: one option per search layer.

    Returns:
        A new module of the same class in the mode of `model`, whose tensors hold only what is
        kept. Every kept value is unchanged.

    Raises:
        ArchitectureError: the architecture is not of this space, or the space not of this model.
    """
    cuts = space.removed(architecture)
    kernels = space.kernels(architecture)
    small = copy.deepcopy(model)
    owners = _owners(small)
    through = _through(space)
    touched: dict[int, nn.Module] = {}
    for (name, dim), gone in cuts.items():
        owner, leaf = _owner(owners, name)
        tensor = getattr(owner, leaf)
        _check_positions(name, tensor, dim, gone)
        if isinstance(owner, _ConvNd) and leaf == "weight" and dim == 0 and name in through:
            owner.groups = owner.groups * (tensor.shape[0] - len(gone)) // tensor.shape[0]
        keep = [i for i in range(tensor.shape[dim]) if i not in gone]
        index = torch.tensor(keep, dtype=torch.long, device=tensor.device)
        _set(owner, leaf, tensor.detach().index_select(dim, index))
        touched[id(owner)] = owner
    for name, kernel in kernels.items():
        owner, leaf = _owner(owners, name)
        _crop(owner, leaf, kernel)
        touched[id(owner)] = owner
    for owner in touched.values():
        _refresh(owner)
    return small


def mask(model: nn.Module, space: SearchSpace, architecture: Architecture) -> nn.Module:
    """The original network with removed channels and kernel rings contributing nothing.

    Masked means: the slices of the *consumers'* weights that read removed channels are zero, and
    so are the outer rings of cropped kernels. `model` is not touched; a copy is returned.
    """
    copied = copy.deepcopy(model)
    _zero(copied, space, architecture)
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


def _through(space: SearchSpace) -> set[str]:
    return {name for (name, _), role in _roles(space).items() if role is Role.THROUGH}


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


def _set(owner: nn.Module, leaf: str, values: Tensor) -> None:
    old = getattr(owner, leaf)
    values = values.contiguous()
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(values, requires_grad=old.requires_grad)
    else:
        owner._buffers[leaf] = values


def _centre(weight: Tensor, kernel: int) -> tuple[slice, ...]:
    ring = [(size - kernel) // 2 for size in weight.shape[2:]]
    return (slice(None), slice(None), *(slice(r, r + kernel) for r in ring))


def _crop(owner: nn.Module, leaf: str, kernel: int) -> None:
    """Crops a kernel around its centre; the padding shrinks so that the output size stays."""
    weight = getattr(owner, leaf)
    ring = (weight.shape[-1] - kernel) // 2
    _set(owner, leaf, weight.detach()[_centre(weight, kernel)].clone())
    if isinstance(owner, _ConvNd) and not isinstance(owner.padding, str):
        owner.padding = tuple(
            p - ring * d for p, d in zip(owner.padding, owner.dilation, strict=True)
        )


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
