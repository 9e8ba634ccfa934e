"""Channels last only where a network runs with it, to the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.network.layout import LaidOut, laid_out, suits
from tests import networks

IMAGES = (torch.randn(3, 3, 16, 16),)


class Views(nn.Module):
    """Takes a view that only the usual order allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 14 * 14, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.view(len(x), -1))


class Strides(nn.Module):
    """Answers with what depends on the order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.mean((2, 3)) * y.stride(1)


@pytest.mark.parametrize("network", [networks.Residual, networks.Separable])
def test_plain_networks_suit(network: Any) -> None:
    assert suits(network().eval(), IMAGES)


@pytest.mark.parametrize("network", [Views, Strides])
def test_networks_that_look_at_their_memory_do_not(network: Any) -> None:
    assert not suits(network().eval(), IMAGES)


def test_nothing_to_gain_without_images_or_convolutions() -> None:
    assert not suits(nn.Flatten(), IMAGES)
    assert not suits(nn.Conv1d(3, 4, 3), (torch.randn(2, 3, 9),))
    assert not suits(networks.Residual().eval(), (torch.randn(2, 3),))


def test_trying_leaves_the_network_as_it_was() -> None:
    model = networks.Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    suits(model, IMAGES)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_batches_keep_their_form_and_values() -> None:
    x, y = torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    for batch in (x, (x, y), ((x, x), y), ((x,),)):
        for _ in range(2):
            (found,) = LaidOut([batch])
            flat = torch.utils._pytree.tree_leaves(found)
            wanted = torch.utils._pytree.tree_leaves(batch)
            assert type(found) is type(batch)
            assert all(torch.equal(a, b) for a, b in zip(flat, wanted, strict=True))
            assert flat[0].is_contiguous(memory_format=torch.channels_last)
    assert laid_out(y) is y


def test_batches_without_a_length_are_still_there() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            return iter([IMAGES[0]])

    assert LaidOut(Endless())
    assert length_hint(LaidOut(Endless()), -1) == -1
    assert length_hint(LaidOut([1, 2]), -1) == 2
