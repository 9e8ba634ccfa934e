"""A run whose latencies are measured on a device, which may fail."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.device.job import Job, Readings, Settings
from compressor.errors import DeviceError, RunError, UsageError
from compressor.report.result import RunSummary
from tests.test_pipeline import FILES, Score, by_weights, compress


@dataclass
class FakeDevice:
    """Takes a microsecond for each weight, and fails from a certain measurement on."""

    name: str = "fake"
    fails_at: int = 10**9
    asked: list[tuple[str, ...]] = field(default_factory=list)
    checks: list[Settings] = field(default_factory=list)

    def check(self, settings: Settings) -> None:
        self.checks.append(settings)

    def take(self, job: Job) -> Readings:
        self.asked.append(tuple(job.models))
        if len(self.asked) >= self.fails_at:
            raise DeviceError(f"{self.name}: the connection failed 3 times")
        times = by_weights(job.models)
        rounds = job.settings.schedule.rounds
        return Readings({n: np.full((rounds, 1), 1e-3 * t.median_ms) for n, t in times.items()})


def test_every_latency_of_a_run_is_the_devices(tmp_path: Path) -> None:
    device = FakeDevice()
    result = compress(tmp_path / "run", budget="latency=50%", device=device, threads=2)
    assert device.asked[-1] == ("original", "compressed")
    assert ("original", "candidate") in device.asked
    assert [(s.threads, s.provider) for s in device.checks] == [(2, "CPUExecutionProvider")]
    found = RunSummary.read(tmp_path / "run")
    assert found.settings["device"] == "fake"
    expected = by_weights({"a": result.onnx_path})["a"].median_ms
    assert found.best.latency_ms == pytest.approx(expected)


def test_a_device_that_fails_at_the_end_keeps_the_search(tmp_path: Path) -> None:
    whole = FakeDevice()
    compress(tmp_path / "whole", budget="madds=50%", device=whole)
    assert whole.asked == [("original", "compressed")]
    with pytest.raises(DeviceError):
        compress(tmp_path / "run", budget="madds=50%", device=FakeDevice(fails_at=1))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}
    compress(tmp_path / "run", budget="madds=50%", device=whole)


def test_another_device_does_not_resume(tmp_path: Path) -> None:
    compress(tmp_path / "run", budget="latency=50%", device=FakeDevice())
    said = 'device was "fake" and is now "other"'
    with pytest.raises(RunError, match=re.escape(said)):
        compress(tmp_path / "run", budget="latency=50%", device=FakeDevice("other"))
    # where no latency decides, the device is no more than where it is measured at the end
    compress(tmp_path / "madds", device=FakeDevice())
    compress(tmp_path / "madds", device=FakeDevice("other"))


class Unreachable(FakeDevice):
    def check(self, settings: Settings) -> None:
        raise DeviceError("nobody is there")


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_device_that_fails_in_the_middle_loses_nothing(tmp_path: Path, share: float) -> None:
    """Before the first score, and after some."""
    whole, reference = FakeDevice(), Score()
    expected = compress(tmp_path / "whole", budget="latency=50%", device=whole, score=reference)
    device = FakeDevice(fails_at=round(len(whole.asked) * share))
    with pytest.raises(DeviceError, match="fake: the connection failed"):
        compress(tmp_path / "run", budget="latency=50%", device=device)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}
    again = FakeDevice()
    resumed = compress(tmp_path / "run", budget="latency=50%", device=again)
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES
    assert resumed.summary.architecture == expected.summary.architecture
    assert resumed.summary.scored == expected.summary.scored
    # nothing that was measured is measured again, but the call that failed and, since windows of
    # time belong together, the others of the network that was about to be taken
    assert 0 <= len(again.asked) + device.fails_at - 1 - len(whole.asked) < 4


def test_a_device_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        compress(tmp_path / "run", budget="latency=50%", device=FakeDevice(fails_at=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "kind", "said"),
    [
        (Unreachable(), DeviceError, "nobody is there"),
        ("cmd:no-such-program {model}", UsageError, "there is no 'no-such-program'"),
        ("gpu", UsageError, "a device must be local, ssh://"),
    ],
)
def test_a_device_that_cannot_serve_is_told_before_anything_starts(
    tmp_path: Path, device: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        compress(tmp_path / "runs" / "run", device=device)
    assert not (tmp_path / "runs").exists()
