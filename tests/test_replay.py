"""Replayed passes: the same output, less work, less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.replay import Replay, trace_calls
from tests import networks

NETWORKS = [
    networks.Residual, networks.Separable, networks.Grouped, networks.SqueezeExcite,
    networks.Dense, networks.SharedModule, networks.Flatten, networks.LargeKernels,
    networks.PaddedShortcuts,
]  # fmt: skip


def in_order(calls: Any) -> list[str]:
    return sorted((n for n in calls.once if n), key=lambda n: calls.once[n].start)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_start_gives_the_output_of_the_whole_pass(network: Any) -> None:
    torch.manual_seed(0)
    model = network().eval()
    batches = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    calls = trace_calls(model, (batches[0],))
    replay = Replay(model, calls)
    with torch.no_grad():
        wanted = [model(x) for x in batches]
        for name in in_order(calls):
            for number, x in enumerate(batches):
                for _ in range(2):  # computed, then remembered
                    got = replay.run(number, (x,), calls.before(name))
                    assert torch.equal(got, wanted[number])
        assert torch.equal(model(batches[0]), wanted[0])  # nothing stays patched


class InPlace(nn.Module):
    """Reads a tensor that a module has changed in place, and one that a module has passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(self.relu(x))
        z = self.same(x)
        z.mul_(2)
        return self.third(y + x).add_(y)


def test_modules_that_work_in_place_are_run_again() -> None:
    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.randn(2, 3, 8, 8)
    calls = trace_calls(model, (x,))
    assert "relu" not in calls.once
    assert "same" not in calls.once
    replay = Replay(model, calls)
    with torch.no_grad():
        wanted = model(x)
        for name in ("second", "third"):
            for _ in range(2):
                assert torch.equal(replay.run(0, (x,), calls.before(name)), wanted)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.body(x)))


def test_only_what_is_still_read_is_kept_in_memory() -> None:
    model, x = Chain().eval(), torch.randn(50, 4)
    calls = trace_calls(model, (x,))
    replay = Replay(model, calls)
    with torch.no_grad():
        for name in in_order(calls):
            replay.run(0, (x,), calls.before(name))
            assert replay.numel() <= x.numel() + 6  # one number for each other module


def test_what_is_done_is_not_computed_again() -> None:
    model, x = Chain().eval(), torch.randn(5, 4)
    calls = trace_calls(model, (x,))
    replay = Replay(model, calls)
    with torch.no_grad():
        done = calls.before("body.3")
        replay.run(0, (x,), done)
        before = model(x)
        for layer in model.body[:3]:
            layer.weight.zero_()  # nobody may notice
        model.body[3].weight.mul_(2)
        after = replay.run(0, (x,), done)
        assert not torch.equal(after, before)
        replay.keep(())
        assert torch.equal(replay.run(0, (x,), done), model(x))


def test_a_pass_that_fails_leaves_the_network_as_it_was() -> None:
    model, x = Chain().eval(), torch.randn(5, 4)
    calls = trace_calls(model, (x,))
    with pytest.raises(RuntimeError):
        Replay(model, calls).run(0, (torch.randn(5, 3),), calls.before("head"))
    assert all("forward" not in m.__dict__ for m in model.modules())
