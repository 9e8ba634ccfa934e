"""The joint step of all channels, against its definition and against what it is for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor import joint
from compressor.data import tensors_hash
from compressor.joint import joint_steps
from compressor.judge import TEMPERATURE
from compressor.library import make_library
from compressor.refit import Refitter
from compressor.replay import trace_calls
from tests import networks
from tests.test_library import EXAMPLE, images, middle, read


class Small(nn.Module):
    """Every kind of knob: a BatchNorm, a convolution and a linear layer with a bias."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.two, self.head = nn.Conv2d(4, 6, 3, 2), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.norm(self.one(x)))
        return self.head(functional.relu(self.two(x)).mean((2, 3)))


def network(seed: int, made: Any = Small) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = made().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_()
    return model


def pair(made: Any = Small, much: float = 0.1) -> tuple[nn.Module, nn.Module]:
    """A network, and the same with noise on its weights."""
    model = network(0, made)
    small = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in small.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(much * parameter.std(unbiased=False) * noise)
    return model, small


def divergence(small: nn.Module, model: nn.Module, batches: list[Tensor]) -> Tensor:
    ours, theirs = (
        torch.cat([(net(x).double() / TEMPERATURE).log_softmax(1) for x in batches])
        for net in (small, model)
    )
    return (theirs.exp() * (theirs - ours)).sum(1).mean()


def steps(model: nn.Module, small: nn.Module, batches: list[Tensor]) -> list[nn.Module]:
    return list(joint_steps(small, model, trace_calls(model, batches[0][:1].split(1)), batches))


def test_the_step_is_that_of_its_definition() -> None:
    """Gauss-Newton by torch's own Jacobian, on a network of scales and shifts."""
    model, small = pair()
    batches = images(2)
    x = torch.cat(batches)
    names = ["norm", "two", "head"]
    units = {}
    for name in names:
        outputs: list[Tensor] = []
        hook = small.get_submodule(name).register_forward_hook(
            lambda _, __, out, outputs=outputs: outputs.append(out.clone())
        )
        small(x[:64] if len(batches[0]) >= 64 else batches[0])
        hook.remove()
        others = [i for i in range(outputs[0].dim()) if i != 1]
        units[name] = outputs[0].std(others, unbiased=False)

    def log_softmax(knobs: Tensor) -> Tensor:
        changed, place = {}, 0
        for name in names:
            module, size = small.get_submodule(name), len(units[name])
            scale, shift = knobs[place : place + size], knobs[place + size : place + 2 * size]
            place += 2 * size
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor)
            assert isinstance(bias, Tensor)
            wide = (1 + scale).view(-1, *[1] * (weight.dim() - 1))
            changed[f"{name}.weight"] = weight * wide
            changed[f"{name}.bias"] = bias * (1 + scale) + shift * units[name]
        out = torch.func.functional_call(small, changed, (x,))
        return (out / TEMPERATURE).log_softmax(1)

    numbers = 2 * sum(map(len, units.values()))
    zero = torch.zeros(numbers)
    jacobian = torch.autograd.functional.jacobian(log_softmax, zero).double()  # [N, C, P]
    ours, theirs = log_softmax(zero).exp().double(), (model(x) / TEMPERATURE).softmax(1).double()
    hessian = torch.einsum("ncp,nc,ncq->pq", jacobian, ours, jacobian)
    gradient = -torch.einsum("ncp,nc->p", jacobian, theirs)
    for share, moved in zip((10.0, 3.0, 1.0), steps(model, small, batches), strict=True):
        level = share * hessian.diagonal().mean() * torch.eye(numbers)
        step = -torch.linalg.solve(hessian + level, gradient)
        wanted = log_softmax(step.float())
        assert torch.allclose((moved(x) / TEMPERATURE).log_softmax(1), wanted, atol=1e-4)
        assert not torch.allclose(wanted, log_softmax(zero), atol=1e-3)


def test_it_brings_other_images_closer_too() -> None:
    generator = torch.Generator().manual_seed(9)
    other = [functional.interpolate(torch.randn(400, 3, 4, 4, generator=generator), 16)]
    model, small = pair()
    before = divergence(small, model, other)
    for moved in steps(model, small, images(4)):
        assert divergence(moved, model, other) < 0.9 * before
        assert divergence(moved, model, images(4)) < 0.9 * divergence(small, model, images(4))


def test_a_network_that_answers_alike_stays_as_it_is() -> None:
    model = network(0)
    for moved in steps(model, copy.deepcopy(model), images(2)):
        for mine, theirs in zip(moved.parameters(), model.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("made", [Small, lambda: Small(40)])
def test_it_does_not_matter_which_gram_matrix_is_solved(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = pair(made)
    wanted = steps(model, small, images(1))
    wanted_first = steps(model, small, [images(1)[0][:10]])
    monkeypatch.setattr(joint, "_ROWS", 0)  # rows are kept: one batch of them at least
    for one, other in zip(steps(model, small, images(1)), wanted, strict=True):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)
    # and where there is no room for more, the first images must do
    parts = [images(1)[0][:10], images(1)[0][10:]]
    for one, other in zip(steps(model, small, parts), wanted_first, strict=True):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)


def test_neither_network_is_touched() -> None:
    model, small = pair()
    small.train()
    before = [tensors_hash(net.state_dict().items()) for net in (model, small)]
    steps(model, small, images(2))
    assert [tensors_hash(net.state_dict().items()) for net in (model, small)] == before
    assert small.training
    assert not any(p.requires_grad for p in (*model.parameters(), *small.parameters()))


class Maps(nn.Module):
    """Outputs that are no classes, in a dict, and modules that must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.twice, self.tied = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.other.weight, self.other.bias = self.tied.weight, self.tied.bias
        self.up, self.last = nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.other(self.tied(self.twice(self.twice(self.norm(x)))))
        return {"map": self.last(functional.relu(self.up(x)))}


def test_only_what_runs_once_and_is_no_one_elses_is_turned() -> None:
    model, small = pair(Maps)
    x = torch.cat(images(2))
    before = (small(x)["map"] - model(x)["map"]).square().mean()
    for moved in steps(model, small, images(2)):
        changed = {
            name.partition(".")[0]
            for (name, mine), theirs in zip(
                moved.named_parameters(), small.parameters(), strict=True
            )
            if not torch.equal(mine, theirs)
        }
        assert changed == {"last"}
        assert (moved(x)["map"] - model(x)["map"]).square().mean() < before


def test_nothing_to_turn_gives_no_step() -> None:
    model = network(0, lambda: nn.Conv2d(3, 4, 1, bias=False))
    assert steps(model, model, images(1)) == []


@pytest.mark.parametrize(
    "made", [networks.Residual, networks.Separable, networks.SqueezeExcite, networks.Dense]
)
def test_after_the_refit_it_comes_closer_still(made: Any) -> None:
    model, space = read(made)
    library = make_library(model, space, EXAMPLE, images())
    small = library.build(middle(space))
    refitter = Refitter(model, library.space, EXAMPLE, images())
    refitter.whole(small, middle(space))
    before = divergence(small, model, images())
    found = joint_steps(small, model, refitter.calls, images())
    assert min(divergence(moved, model, images()) for moved in found) < before


def test_progress_tells_how_many_images_are_done() -> None:
    model, small = pair()
    told: list[int] = []
    calls = trace_calls(model, EXAMPLE)
    list(joint_steps(small, model, calls, images(2), lambda event: told.append(event.done)))
    assert told == [16, 32]
