"""Calls with weights as torch's own modules, so that all that knows modules knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = {
    (1, False): nn.Conv1d, (2, False): nn.Conv2d, (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d,
}  # fmt: skip
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Layer:
    """A module that is yet to be made.

    Attributes:
        kind: its class.
        config: arguments of its constructor.
        tensors: its parameters and buffers, by their names in the module.
    """

    kind: type[nn.Module]
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def module(self) -> nn.Module:
        """The module in evaluation mode; its tensors are those given."""
        made = self.kind(**self.config, device="meta")
        for leaf in (*made._parameters, *made._buffers):
            given = self.tensors.get(leaf)
            if leaf in made._parameters and given is not None:
                made._parameters[leaf] = _parameter(given)
            elif made._buffers.get(leaf) is not None:
                made._buffers[leaf] = torch.tensor(0) if given is None else given
        return made.eval()

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where one module can serve for both."""
        config = tuple(sorted((k, str(v)) for k, v in self.config.items()))
        return self.kind, config, tuple((k, id(t)) for k, t in sorted(self.tensors.items()))


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
    output_padding: Sequence[int] = (0,),
) -> Layer | None:
    """A convolution, or None of more dimensions than torch has modules for."""
    spatial = weight.dim() - 2
    kind = _CONVOLUTIONS.get((spatial, transposed))
    if kind is None:
        return None
    config: dict[str, Any] = {
        "in_channels": weight.shape[0] if transposed else weight.shape[1] * groups,
        "out_channels": weight.shape[1] * groups if transposed else weight.shape[0],
        "kernel_size": tuple(weight.shape[2:]),
        "stride": _all(stride, spatial),
        "padding": padding if isinstance(padding, str) else _all(padding, spatial),
        "dilation": _all(dilation, spatial),
        "groups": groups,
        "bias": bias is not None,
    }
    if transposed:
        config["output_padding"] = _all(output_padding, spatial)
    return Layer(kind, config, _present(weight=weight, bias=bias))


def linear(weight: Tensor, bias: Tensor | None) -> Layer:
    """`x @ weight.T + bias`."""
    config = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": bias is not None,
    }
    return Layer(nn.Linear, config, _present(weight=weight, bias=bias))


def batch_norm(
    tensors: Mapping[str, Tensor | None], dims: int, eps: float, momentum: float = 0.1
) -> Layer | None:
    """A BatchNorm in evaluation mode; None where it lacks statistics, or one of scale and shift.

    Args:
        tensors: `weight`, `bias`, `running_mean`, `running_var`.
        dims: number of dimensions of its input.
        eps: added to the variance.
        momentum: of the statistics, where it is trained.
    """
    found = _present(**tensors)
    kind, affine = _BATCH_NORMS.get(dims), "weight" in found
    if (
        kind is None
        or affine != ("bias" in found)
        or not {"running_mean", "running_var"} <= {*found}
    ):
        return None
    features = found["running_mean"].shape[0]
    config = {"num_features": features, "eps": eps, "momentum": momentum, "affine": affine}
    return Layer(kind, config, found)


def layer_norm(
    shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Layer | None:
    """Normalises the last dimensions; None where it has a shift but no scale."""
    if weight is None:
        return None
    config = {"normalized_shape": tuple(shape), "eps": eps, "bias": bias is not None}
    return Layer(nn.LayerNorm, config, _present(weight=weight, bias=bias))


def group_norm(groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Layer | None:
    """Normalises groups of channels; None where it has not both scale and shift."""
    if weight is None or bias is None:
        return None
    config = {"num_groups": groups, "num_channels": weight.shape[0], "eps": eps}
    return Layer(nn.GroupNorm, config, {"weight": weight, "bias": bias})


def embedding(weight: Tensor) -> Layer:
    """Rows of a table."""
    config = {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    return Layer(nn.Embedding, config, {"weight": weight})


def prelu(weight: Tensor) -> Layer | None:
    """A slope for each channel; None where they are laid out otherwise."""
    if weight.dim() != 1:
        return None
    return Layer(nn.PReLU, {"num_parameters": weight.shape[0]}, {"weight": weight})


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def _present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _all(given: Sequence[int], spatial: int) -> tuple[int, ...]:
    """One number stands for every dimension."""
    return tuple(given) * spatial if len(given) == 1 else tuple(given)
