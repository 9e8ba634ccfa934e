"""Weights of positions: large where the network's output depends on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.network.data import tensors_hash
from compressor.refit import relevance as module
from compressor.refit.library import make_library
from compressor.refit.moments import Moments
from compressor.refit.relevance import relevance
from compressor.refit.sequence import Refitter
from tests.test_library import EXAMPLE, images, loss, middle, read


class LeftHalf(nn.Module):
    """Reads the left half of the image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.two(functional.relu(self.one(x))))
        return self.head(torch.tanh(x[..., :8]).mean((2, 3)))


def test_what_the_output_never_reads_gets_the_floor() -> None:
    model, _ = read(LeftHalf)
    before = tensors_hash(model.state_dict().items())
    found = relevance(model, ["two"], images(2))
    for batch in range(2):
        weights = found.of("two", batch, 1).reshape(16, 16, 16)
        assert torch.equal(weights[..., 8:], torch.full((16, 16, 8), module._FLOOR))
        assert bool((weights[..., :8] > module._FLOOR).all())
        some = found.of("two", batch, 2)
        assert torch.equal(some, weights[:, ::2, ::2].flatten())
    assert tensors_hash(model.state_dict().items()) == before
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_the_same_images_give_the_same_weights() -> None:
    model, _ = read(LeftHalf)
    one, other = (relevance(model, ["one", "two"], images(1)) for _ in range(2))
    assert all(torch.equal(one.of(n, 0, 1), other.of(n, 0, 1)) for n in ("one", "two"))


def test_it_is_the_squared_gradient_of_a_linear_head() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 3, bias=False)
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 0.0])[:, None])

        def forward(self, x: Tensor) -> Tensor:
            return (self.body(x) * self.scale).sum((1, 2))[:, None]

    found = relevance(Linear(), ["body"], [torch.randn(64, 4, 5)]).weights["body"][0]
    squares = torch.tensor([1.0, 4.0, 9.0, 0.0])
    # One random number scales all of an image alike, so shares within an image are exact.
    shares = (found - module._FLOOR).clamp_min(0)
    whole = shares[shares[:, 2] < 0.9 * (module._MOST - module._MOST * module._FLOOR)]
    assert torch.allclose(whole / whole[:, 2:3], (squares / 9).expand_as(whole), atol=1e-4)


def test_what_no_gradient_reaches_is_an_error() -> None:
    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).detach())

    with pytest.raises(RuntimeError, match="'one'"):
        relevance(Blocked(), ["one", "two"], [torch.randn(3, 4)])


def test_weighted_moments_are_those_of_repeated_patches() -> None:
    x, y = torch.randn(2, 30, 5), torch.randn(2, 30, 3)
    times = torch.randint(1, 4, (30,))
    weighted, repeated = Moments(2, 5, 3), Moments(2, 5, 3)
    weighted.add(x, y, times.float())
    repeated.add(x.repeat_interleave(times, 1), y.repeat_interleave(times, 1))
    assert weighted.count == repeated.count
    for centred in (True, False):
        assert torch.allclose(
            weighted.second(centred=centred), repeated.second(centred=centred), atol=1e-5
        )
        assert torch.allclose(
            weighted.cross(centred=centred), repeated.cross(centred=centred), atol=1e-5
        )
    assert torch.allclose(weighted.mean, repeated.mean, atol=1e-5)


def test_a_refit_is_closer_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.refit.step.FOLDS", 1)  # the same ridge with both
    model, space = read(LeftHalf)
    library = make_library(model, space, EXAMPLE, images())
    architecture = middle(space)
    found = []
    for relevant in (True, False):
        refitter = Refitter(model, library.space, EXAMPLE, images())
        if not relevant:
            refitter._relevant = lambda *_: None  # type: ignore[method-assign]
        small = library.build(architecture)
        refitter.whole(small, architecture)
        found.append(loss(model, small))
    assert found[0] < found[1]
