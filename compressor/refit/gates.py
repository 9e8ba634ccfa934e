"""What each channel contributes to the loss of each image: gradient times activation, no labels.

The answers come from the network itself: of logits `[N, classes]` a class is drawn from their
softmax, of any other output a value from a normal distribution around it. The loss is the negative
log-likelihood of that answer. The mean square of its gradient is the Fisher information, which
tells to second order how far the output distribution moves (KL divergence); the gradient of that
divergence itself would be zero, as the original is its minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from compressor.errors import DataError
from compressor.network.counting import evaluating
from compressor.network.data import Batches, device_of, on, split
from compressor.network.patches import channel_dim

_REMEDY = "choose another ranking, for example reconstruction"


def gate_slopes(model: nn.Module, names: Iterable[str], calibration: Batches) -> dict[str, Tensor]:
    """Derivative of each image's loss by a gate on each input channel: `[images, channels]`.

    Args:
        model: the original network, in evaluation mode meanwhile; no gradient is left in it.
        names: modules with a convolution's or linear layer's weight; each reads through gates of
            its own.
        calibration: batches; targets are not used.

    Raises:
        DataError: gradients cannot be taken through the network.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    watched = {name: modules[name] for name in names}
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[Tensor]] = {name: [] for name in watched}
    with evaluating(model), torch.enable_grad():
        for batch in calibration:
            inputs = on(device_of(model), split(batch)[0])
            for name, slopes in _one_batch(model, watched, inputs, generator).items():
                parts[name].append(slopes)
    return {name: torch.cat(found) for name, found in parts.items() if found}


def _one_batch(
    model: nn.Module,
    watched: Mapping[str, nn.Module],
    inputs: tuple[Tensor, ...],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    read: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # A copy, so that its gradient is what goes through this consumer alone.
            copied = args[0].clone() if args[0].requires_grad else args[0].clone().requires_grad_()
            read.append((name, copied))
            return (copied,)

        return watched[name].register_forward_pre_hook(hook)

    handles = [watch(name) for name in watched]
    try:
        loss = _surprise(model(*inputs), generator)
        gradients = torch.autograd.grad(loss, [x for _, x in read], allow_unused=True)
    except RuntimeError as error:
        raise DataError(
            "ranking by taylor needs gradients through the network, but it raised "
            f"{type(error).__name__}: {error}; {_REMEDY}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for (name, x), gradient in zip(read, gradients, strict=True):
        if gradient is not None:
            slopes = _by_channel(name, watched[name], (x * gradient).detach(), len(inputs[0]))
            found[name] = found.get(name, torch.zeros_like(slopes)) + slopes
    return found


def _by_channel(name: str, module: nn.Module, product: Tensor, images: int) -> Tensor:
    channels = product.movedim(channel_dim(module, product), -1)
    if len(channels) % images:
        raise DataError(
            "ranking by taylor needs inputs that belong to single images, but "
            f"{name!r} reads {len(channels)} rows for {images} images; {_REMEDY}"
        )
    return channels.reshape(images, -1, channels.shape[-1]).sum(1).double().cpu()


def _surprise(output: Any, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood, up to a constant, of answers drawn from the output itself."""
    total = torch.zeros(())
    for y in tree_leaves(output):
        if not isinstance(y, Tensor) or not y.is_floating_point():
            continue
        if y.dim() == 2 and y.shape[1] > 1:
            chances = y.detach().float().softmax(1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).flatten().to(y.device)
            loss = functional.cross_entropy(y, drawn, reduction="sum")
        else:
            loss = (y * torch.randn(y.shape, generator=generator).to(y)).sum()
        total = total + loss.cpu()
    return total
