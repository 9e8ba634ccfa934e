"""Weights that are computed anew in every forward pass, made plain ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def folded(model: nn.Module) -> nn.Module:
    """The network with its parametrisations folded into plain weights.

    `weight_norm`, `spectral_norm` and others of `torch.nn.utils` compute a weight from other
    parameters each time. A trained network computes the same one every time, so it is stored: what
    is deployed has no use for the rest, and a plain weight can be cut.

    Args:
        model: as it is in evaluation mode; not touched.

    Returns:
        A copy, with `weight` in place of what it was computed from; the model itself where there is
        nothing to fold.
    """
    if not isinstance(model, nn.Module):
        return model  # what it is instead is said where a request is checked
    if not any(parametrize.is_parametrized(m) or list(_hooks(m)) for m in model.modules()):
        return model
    computed = (
        getattr(m, name) for m in model.modules() for _, name in _hooks(m) if hasattr(m, name)
    )  # no parameters, so that they could not be copied
    copied = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed}).eval()
    with torch.no_grad():
        for module in list(copied.modules()):
            if parametrize.is_parametrized(module):
                _fold_parametrizations(module)
            for key, name in list(_hooks(module)):
                _fold_hook(module, key, name)
    for module, original in zip(_kept(copied), _kept(model), strict=True):
        module.training = original.training
    return copied


def _fold_parametrizations(module: nn.Module) -> None:
    """As `remove_parametrizations` does, which would change the class of the original as well."""
    before = parametrize.type_before_parametrizations(module)
    lists = module._modules["parametrizations"]
    assert lists is not None  # noqa: S101  (it is parametrised)
    values = {name: getattr(module, name).detach().clone() for name, _ in lists.named_children()}
    learnt = {name: any(True for _ in one.parameters()) for name, one in lists.named_children()}
    del module._modules["parametrizations"]
    module.__class__ = before
    for name, value in values.items():
        if learnt[name]:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def _kept(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that folding leaves, in their order."""
    gone = {
        inner
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for inner in module.get_submodule("parametrizations").modules()
    }
    return (module for module in model.modules() if module not in gone)


def _hooks(module: nn.Module) -> Iterator[tuple[int, str]]:
    """Hooks of the older `weight_norm` and `spectral_norm`, and the tensor that each computes."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield key, hook.name


def _fold_hook(module: nn.Module, key: int, name: str) -> None:
    hook: Any = module._forward_pre_hooks.pop(key)
    options = {} if isinstance(hook, WeightNorm) else {"do_power_iteration": False}
    weight: Tensor = hook.compute_weight(module, **options)
    for left in ("g", "v", "u", "orig"):
        module._parameters.pop(f"{name}_{left}", None)
        module._buffers.pop(f"{name}_{left}", None)
    module.__dict__.pop(name, None)
    module.register_parameter(name, nn.Parameter(weight.detach().clone()))
