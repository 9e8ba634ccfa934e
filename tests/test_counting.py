"""Multiply-adds against figures derived by hand, and against torch's own counter."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from compressor.cost import TensorSize
from compressor.errors import DataError
from compressor.network.counting import Count, count, evaluating
from tests import networks


def between(counted: Count) -> list[TensorSize]:
    """Products of no parameter."""
    return [p for p in counted.products if not p.of]


NETWORKS = [
    networks.Residual, networks.Separable, networks.Grouped, networks.SqueezeExcite,
    networks.Dense, networks.SharedModule, networks.Flatten, networks.LargeKernels,
    networks.PaddedShortcuts,
]  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_equals_torchs_flop_counter(network: Any) -> None:
    net = network().eval()
    x = torch.randn(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    counted = count(net, (x,))
    assert counted.madds * 2 == counter.get_total_flops()
    assert counted.params == sum(p.numel() for p in net.parameters())
    assert between(counted) == []


# (layer, input, output positions x weights of one output) by hand
BY_HAND = [
    (nn.Conv2d(3, 8, 3), (1, 3, 10, 10), 8 * 8 * 8 * 3 * 9),
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 10, 10), 5 * 5 * 8 * 3 * 9),
    (nn.Conv2d(4, 8, 3, groups=2, padding=1), (1, 4, 6, 6), 6 * 6 * 8 * 2 * 9),
    (nn.Conv2d(4, 4, 5, groups=4, padding=2), (1, 4, 6, 6), 6 * 6 * 4 * 25),
    (nn.Conv2d(2, 2, 3, dilation=2), (1, 2, 9, 9), 5 * 5 * 2 * 2 * 9),
    (nn.Conv2d(2, 2, (3, 1), stride=(2, 1)), (1, 2, 7, 4), 3 * 4 * 2 * 2 * 3),
    (nn.Conv1d(2, 5, 3), (1, 2, 8), 6 * 5 * 2 * 3),
    (nn.Conv3d(1, 2, 2), (1, 1, 4, 4, 4), 27 * 2 * 8),
    # a transposed convolution applies its weight once for each input position
    (nn.ConvTranspose2d(3, 4, 2, stride=2), (1, 3, 5, 5), 5 * 5 * 3 * 4 * 4),
    (nn.Linear(6, 7), (1, 6), 42),
    (nn.Linear(6, 7, bias=False), (1, 5, 6), 5 * 42),
    (nn.Linear(6, 7), (1, 2, 5, 6), 2 * 5 * 42),
]


@pytest.mark.parametrize(("layer", "shape", "madds"), BY_HAND)
@pytest.mark.parametrize("batch", [1, 4])
def test_figures_by_hand(layer: nn.Module, shape: tuple[int, ...], madds: int, batch: int) -> None:
    counted = count(layer, (torch.randn(batch, *shape[1:]),))
    assert counted.madds == madds
    assert between(counted) == []


class Functional(nn.Module):
    """Weights applied by functions, one of them twice, one through a view, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.mix = nn.Linear(4, 4)
        self.idle = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.weight).mean((2, 3))
        return functional.linear(self.mix(x), self.mix.weight) @ self.mix.weight.t()


def test_functional_calls_and_reuse_belong_to_the_parameter() -> None:
    counted = count(Functional(), (torch.randn(2, 3, 6, 6),))
    positions = {t.name: t.positions for t in counted.tensors}
    assert positions["weight"] == 16
    assert positions["mix.weight"] == 3
    assert positions["idle.weight"] == positions["mix.bias"] == 0
    assert counted.madds == 16 * 108 + 3 * 16
    assert counted.params == 108 + 20 + 90


def test_a_weight_that_is_repeated_for_a_batch_is_still_a_weight() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.randn(4, 6), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x[0], self.mix.expand(3, 4, 6))

    counted = count(Mixed(), (torch.randn(1, 3, 5, 4),))
    assert between(counted) == []
    assert counted.madds == 3 * 5 * 4 * 6


def test_attention_is_a_part_of_its_own() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v)

    tokens, width = 5, 8
    q = torch.randn(2, 2, tokens, width)
    counted = count(Attention(), (q, q, q))
    assert sum(prod(p.shape) for p in between(counted)) == counted.madds
    assert counted.madds == 2 * 2 * tokens * tokens * width
    assert any("softmax" in name for name in counted.uncounted)


@pytest.mark.parametrize("same_source", [True, False])
def test_multihead_attention(same_source: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x if same_source else x + 1, x, need_weights=False)[0]

    tokens, width = 5, 16
    enabled = torch.backends.mha.get_fastpath_enabled()
    counted = count(Own(), (torch.randn(3, tokens, width),))
    assert counted.madds == 4 * tokens * width * width + 2 * tokens * tokens * width
    assert torch.backends.mha.get_fastpath_enabled() is enabled


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(recurrent: Any) -> None:
    layer = recurrent(6, 8, num_layers=2, batch_first=True, bidirectional=True)
    matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    counted = count(layer, (torch.randn(3, 5, 6),))
    assert counted.madds == 5 * matrices
    assert between(counted) == []


def test_inputs_without_a_batch_stay_whole() -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor, table: Tensor, scale: Tensor) -> Tensor:
            return x @ table * scale

    inputs = (torch.randn(2, 3), torch.randn(3, 4), torch.tensor(2.0))
    assert count(Table(), inputs).madds == 12


def test_what_is_not_counted_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    uncounted = count(net, (torch.randn(1, 3, 5, 5),)).uncounted
    assert uncounted["relu"] == 1
    assert any("batch_norm" in name for name in uncounted)
    assert not any("view" in name for name in uncounted)


def test_modes_come_back_and_nothing_is_left_behind() -> None:
    net = networks.Residual()
    net.stem[1].eval()
    modes = [m.training for m in net.modules()]
    mean = net.stem[1].running_mean.clone()
    count(net, (torch.randn(2, 3, 16, 16),))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(net.stem[1].running_mean, mean)
    with pytest.raises(KeyboardInterrupt), evaluating(net):
        raise KeyboardInterrupt
    assert [m.training for m in net.modules()] == modes


def test_a_model_that_does_not_run_is_an_error_with_shapes() -> None:
    with pytest.raises(DataError, match=r"\[1, 4, 8, 8\].*RuntimeError"):
        count(networks.Residual(), (torch.randn(5, 4, 8, 8),))
