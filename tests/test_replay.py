"""Replayed passes: the same output, less work, less memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from compressor.network.replay import Replay, trace_calls
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


@dataclass
class Answer:
    aux: Tensor
    out: Tensor


class TwoHeads(nn.Module):
    """Returns what one of its modules returned, and goes on after that."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.aux = nn.Conv2d(4, 2, 1)
        self.second = nn.Conv2d(4, 4, 3)
        self.third = nn.Conv2d(4, 2, 1)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        aux = self.aux(x)
        return self.pack(aux, self.third(self.second(x)))


def same_at_every_start(model: nn.Module) -> None:
    """Two batches in turn, so that what is left over from the other one would show."""
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    calls = trace_calls(model, (batches[0],))
    with torch.no_grad():
        wanted = [leaves(model(x)) for x in batches]
        for name in in_order(calls):
            replay = Replay(model, calls)
            for number in (0, 1, 0, 1):
                got = leaves(replay.run(number, (batches[number],), calls.before(name)))
                for a, b in zip(got, wanted[number], strict=True):
                    assert torch.equal(a, b), name


def leaves(out: Any) -> list[Any]:
    return tree_leaves(vars(out) if isinstance(out, Answer) else out)


@pytest.mark.parametrize(
    "pack",
    [
        lambda aux, out: {"aux": aux, "out": out},
        lambda aux, out: [(aux,), out],
        Answer,
        lambda aux, out: aux,
        lambda aux, out: aux.flatten(1),
        lambda aux, out: (aux.flatten(1), out),
    ],
    ids=["dict", "nested", "dataclass", "alone", "view", "views"],
)
def test_what_the_network_returns_is_kept(pack: Any) -> None:
    torch.manual_seed(0)
    same_at_every_start(TwoHeads(pack).eval())


def test_a_forward_of_the_instance_is_run_and_stays() -> None:
    torch.manual_seed(0)
    model = TwoHeads(lambda aux, out: aux + out.mean()).eval()
    plain = model.first.forward

    def patched(x: Tensor) -> Tensor:
        return 3 * plain(x)

    model.first.forward = patched  # type: ignore[method-assign]
    same_at_every_start(model)
    assert model.first.__dict__["forward"] is patched
    assert "forward" not in model.second.__dict__


class Encoder(nn.Module):
    """Leaves a tensor behind: one on the way to its output, or the output itself."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.late = late
        self.skip = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        out: Tensor = self.second(early)
        self.skip = out if self.late else early.view(early.shape)
        return out


class LeftBehind(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.encoder = Encoder(late)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.encoder(x))
        out: Tensor = self.last(x + self.encoder.skip)
        return out


@pytest.mark.parametrize("late", [False, True])
def test_a_module_that_leaves_a_tensor_behind_is_run_again(late: bool) -> None:
    torch.manual_seed(0)
    model = LeftBehind(late).eval()
    same_at_every_start(model)
    once = trace_calls(model, (torch.randn(2, 3, 8, 8),)).once
    assert "encoder" not in once
    assert {"encoder.first", "encoder.second", "middle", "last"} <= set(once)


class Hooked(nn.Module):
    """Returns, or reads, what a hook has collected inside of a module."""

    def __init__(self, position: int, read: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(4, 2, 1)
        self.read = read
        self.found: list[Tensor] = []
        self.body[position].register_forward_hook(lambda _m, _a, out: self.found.append(out))

    def forward(self, x: Tensor) -> Any:
        out = self.head(self.body(x))
        found = self.found.pop()
        return out + found.mean() if self.read else (out, found)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("read", [False, True])
def test_features_collected_by_hooks_are_not_stale(position: int, read: bool) -> None:
    torch.manual_seed(0)
    model = Hooked(position, read).eval()
    same_at_every_start(model)
    once = trace_calls(model, (torch.randn(2, 3, 8, 8),)).once
    assert "body" not in once
    assert {"body.0", "body.1", "head"} <= set(once)


class Counts(nn.Module):
    """Changes a buffer that others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.copy_(x.mean())
        out: Tensor = self.first(x)
        return out


class ReadsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.counts(x)) * self.counts.mean
        return out


def test_a_module_that_changes_a_buffer_for_others_is_run_again() -> None:
    torch.manual_seed(0)
    same_at_every_start(ReadsBuffer().eval())
