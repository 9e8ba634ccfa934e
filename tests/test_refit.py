"""Refitting around clips: what is cut off on both sides need not be equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.network.tracing import Fate, trace_fates
from compressor.refit.library import make_library
from compressor.refit.moments import Moments
from compressor.refit.sequence import refit
from tests.test_library import EXAMPLE, images, loss, middle, read


class Clipped(nn.Module):
    """A convolution and a BatchNorm, and something that follows them."""

    def __init__(self, after: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 4, 1)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.norm(self.one(x)))
        return self.head(self.after(self.last(self.two(x))))


def clips(model: nn.Module) -> dict[str, Any]:
    return {name: fate.clip for name, fate in trace_fates(model.eval(), EXAMPLE).items()}


# ---- where a clip follows


@pytest.mark.parametrize(
    ("after", "bounds"),
    [
        (nn.ReLU(), (0.0, math.inf)),
        (nn.ReLU(inplace=True), (0.0, math.inf)),
        (functional.relu, (0.0, math.inf)),
        (functional.relu_, (0.0, math.inf)),
        (torch.relu, (0.0, math.inf)),
        (nn.ReLU6(), (0.0, 6.0)),
        (nn.ReLU6(inplace=True), (0.0, 6.0)),
        (functional.relu6, (0.0, 6.0)),
        (nn.Hardtanh(), (-1.0, 1.0)),
        (lambda x: functional.hardtanh(x, -2.0, 3.0), (-2.0, 3.0)),
        (nn.GELU(), None),
        (torch.sigmoid, None),
        (lambda x: functional.relu(x + x), None),
        (lambda x: functional.relu(x * 2), None),
    ],
)
def test_clips_after_a_batchnorm_are_noted(after: Any, bounds: Any) -> None:
    found = clips(Clipped(after))
    assert (found["one"], found["two"], found["head"]) == (bounds, bounds, None)


def test_a_clip_without_a_batchnorm_is_noted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(1024, 3)
    )
    assert clips(model) == {"0": (0.0, math.inf), "3": None}


class Shortcut(nn.Module):
    """A sum whose addend was clipped before, or is clipped after."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        y = self.before(self.norm(self.inner(x)))
        return self.head(self.after(x + y))


@pytest.mark.parametrize("after", [nn.ReLU(), nn.ReLU(inplace=True), None])
def test_after_a_sum_no_clip_is_noted(after: Any) -> None:
    fate = trace_fates(Shortcut(after=after).eval(), EXAMPLE)["inner"]
    assert fate == Fate(norm="norm", addend=0, position=0)


@pytest.mark.parametrize("before", [nn.ReLU(inplace=True), functional.relu_, nn.ReLU6(True)])
def test_what_was_clipped_in_place_is_no_addend(before: Any) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return before(x)

    fate = trace_fates(Shortcut(Wrapped()).eval(), EXAMPLE)["inner"]
    assert fate.addend is None
    assert fate.clip is not None


def test_what_was_changed_in_place_is_no_addend() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    fate = trace_fates(Shortcut(Doubled()).eval(), EXAMPLE)["inner"]
    assert (fate.addend, fate.clip) == (None, None)


class Both(nn.Module):
    """What the clip reads, something else reads as well."""

    def __init__(self, *, normed: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(functional.relu(self.norm(y))) + y


@pytest.mark.parametrize("normed", [True, False])
def test_a_clip_is_not_noted_where_something_else_reads_the_output(normed: bool) -> None:
    fates = trace_fates(Both(normed=normed).eval(), EXAMPLE)
    assert fates["one"].clip is None
    assert fates["two"].addend == 0


# ---- targets set anew


def refitted(network: Any) -> tuple[nn.Module, nn.Module]:
    """The original and its middle network after the refit."""
    model, space = read(network)
    library = make_library(model, space, EXAMPLE, images())
    architecture = middle(space)
    small = library.build(architecture)
    refit(model, small, library.space, architecture, EXAMPLE, images())
    return model, small


def without_rounds(network: Any) -> tuple[nn.Module, nn.Module]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.refit.step._ROUNDS", 0)
        return refitted(network)


class ReLU6s(nn.Module):
    """Depthwise convolutions with ReLU6, some of it clipped above."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i, o, groups in [(3, 16, 1), (16, 16, 16), (16, 32, 1), (32, 32, 32), (32, 24, 1)]:
            kernel = 1 if i != o and i > 3 else 3
            blocks += [nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups, bias=False)]
            blocks += [nn.BatchNorm2d(o), nn.ReLU6(inplace=True)]
        self.body, self.head = nn.Sequential(*blocks), nn.Conv2d(24, 4, 1)
        for norm in self.body[1::3]:
            nn.init.constant_(norm.bias, 1.0)
            nn.init.constant_(norm.weight, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class OneCut(nn.Module):
    """One decision alone, and a clip after its reader, which keeps its width."""

    def __init__(self, clip: nn.Module, *, normed: bool = True, kernel: int = 3) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 8, kernel, padding=kernel // 2, bias=not normed)
        self.norm = nn.BatchNorm2d(8) if normed else nn.Identity()
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        return self.clip(self.norm(self.two(functional.relu(self.one(x)))))


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("clip", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()])
def test_rounds_bring_the_network_closer_after_the_clip(clip: nn.Module, normed: bool) -> None:
    def network() -> nn.Module:
        return OneCut(copy.deepcopy(clip), normed=normed)

    assert loss(*refitted(network)) < 0.98 * loss(*without_rounds(network))


@pytest.mark.parametrize("network", [Clipped, ReLU6s])
def test_rounds_bring_the_whole_network_closer(network: Any) -> None:
    with_rounds, without = loss(*refitted(network)), loss(*without_rounds(network))
    assert with_rounds < without


class NoNorm(nn.Module):
    """Clips after convolutions and linear layers without a BatchNorm."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, 2, 1, bias=bias)
        self.two = nn.Conv2d(16, 24, 3, 2, 1, bias=bias)
        self.three = nn.Linear(24 * 16, 32, bias=bias)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.two(functional.relu(self.one(x))))
        return self.head(functional.relu(self.three(x.flatten(1))))


class OwnStatistics(nn.Module):
    """A BatchNorm that normalises each batch by itself, before a clip and before a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.three = nn.Conv2d(16, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16, track_running_stats=False) for _ in range(3))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norms[0](self.one(x)))
        y = functional.relu(self.norms[1](self.two(x)))
        return self.head(x + self.norms[2](self.three(y)))


def test_statistics_of_the_batch_itself_are_left_to_the_batch() -> None:
    _, small = refitted(OwnStatistics)
    with torch.no_grad():
        assert bool(torch.isfinite(small(images(1)[0])).all())


@pytest.mark.parametrize("constant", [True, False])
def test_linear_layers_without_a_constant_keep_their_targets(constant: bool) -> None:
    def network() -> nn.Module:
        return NoNorm(bias=constant)

    (_, one), (_, other) = refitted(network), without_rounds(network)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) is not constant


def test_without_a_clip_rounds_change_nothing() -> None:
    def network() -> nn.Module:
        return Clipped(torch.tanh)

    (_, one), (_, other) = refitted(network), without_rounds(network)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


# ---- moments with other targets


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("centred", [True, False])
def test_retargeted_moments_are_those_built_anew(groups: int, centred: bool) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(8, 12, 3, padding=1, groups=groups)
    batches = [(torch.randn(5, 8, 6, 6) + 3, torch.randn(5, 12, 6, 6)) for _ in range(3)]
    others = [torch.randn(5, 12, 6, 6) for _ in batches]
    size = 8 // groups * 9
    first, wanted = Moments(groups, size, 12 // groups), Moments(groups, size, 12 // groups)
    for (x, y), other in zip(batches, others, strict=True):
        first.observe(module, x, y)
        wanted.observe(module, x, other)
    before = first.cross(centred=centred).clone()
    again = first.retargeted()
    for (x, _), other in zip(batches, others, strict=True):
        again.observe(module, x, other)
    assert again.count == wanted.count
    for got, expected in (
        (again.second(centred=centred), wanted.second(centred=centred)),
        (again.cross(centred=centred), wanted.cross(centred=centred)),
        (again.mean, wanted.mean),
        (again.target, wanted.target),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(first.cross(centred=centred), before, rtol=0, atol=0)
