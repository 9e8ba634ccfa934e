"""Limits on reading a network: what passes them is ended, with the reason."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import generic
from adapters.generic import GenericAdapter
from adapters.identities import follow
from adapters.limits import Limits, within
from compressor.errors import AdapterError
from compressor.run import reading


def test_code_that_never_returns_is_ended() -> None:
    def endless() -> None:
        while True:
            with contextlib.suppress(Exception):  # as foreign code may
                time.sleep(0.001)

    with pytest.raises(AdapterError, match=r"longer than 0\.3 s"):
        within(Limits(seconds=0.3), endless)


def test_code_that_takes_too_much_memory_is_ended() -> None:
    def growing() -> None:
        held = []
        while True:
            held.append(bytearray(8 << 20))
            time.sleep(0.02)

    with pytest.raises(AdapterError, match="more than 64 MiB"):
        within(Limits(memory=64 << 20), growing)


def test_code_within_the_limits_returns_and_raises_as_it_does_alone() -> None:
    assert within(Limits(), lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(Limits(), lambda: 1 // 0)


def test_nothing_is_raised_after_the_call_is_over() -> None:
    assert within(Limits(seconds=0.1), lambda: "done") == "done"
    time.sleep(0.5)  # beyond the limit


def test_limits_pass_by_their_clock() -> None:
    ticks = itertools.count(0.0, 1.0)
    watch = Limits(seconds=2.5).watch(lambda: next(ticks))
    assert [bool(watch.reason()) for _ in range(4)] == [False, False, True, True]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 7, padding=3), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


def test_a_network_that_takes_too_long_to_follow_is_told_so() -> None:
    with pytest.raises(AdapterError, match="longer than 0 s"):
        follow(_Net(), (torch.randn(1, 3, 16, 16),), Limits(seconds=0.0))


def test_kernels_remain_choices_where_no_graph_can_be_built_in_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(generic, "read_groups", lambda *_: within(Limits(0.0), _endless))
    adapter = GenericAdapter(limits=Limits(seconds=0.0))
    space = adapter.read(_Net().eval(), (torch.randn(1, 3, 16, 16),))
    assert [str(c) for layer in space.layers for c in layer.choices] == ["k3", "k5", "k7"]
    (frozen,) = (f for f in space.frozen if f.name == "all channels")
    assert frozen.reason.count("longer than 0 s") == 2


def _endless() -> None:
    while True:
        time.sleep(0.001)


def test_a_network_too_large_to_be_proved_is_an_error_of_ours(monkeypatch: Any) -> None:
    raised = RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(reading, "verify_space", fails)
    net, example = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.zeros(2, 4),)
    with pytest.raises(AdapterError, match=r"memory ran out .*0\.0 GiB.*more memory"):
        reading.read_network(net, example)
    raised = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        reading.read_network(net, example)
