"""Devices behind ssh where no server is installed: a double in place of the program `ssh`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from compressor.device import courier
from compressor.device.devices import parse_device
from compressor.device.job import Device, Job, Settings
from compressor.device.measure import measure, measure_fully
from compressor.device.ssh import SshDevice
from compressor.device.timing import Schedule
from compressor.errors import DeviceError, MeasureError
from tests.test_measure import doubling

QUICK = Settings(schedule=Schedule(warmup=2, repeats=2, rounds=6, seconds=1e-6))
# Runs the last word in a shell, as the other side would.
HERE = 'for last; do :; done; exec sh -c "$last"'


def double(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """An `ssh` that notes how it was called; returns the notes."""
    notes, remote = folder / "notes", folder / "remote"
    remote.mkdir()
    program = folder / "ssh"
    program.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {notes}\nexport TMPDIR={remote}\n{body}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return notes


def device(text: str = "ssh://me@board:2222") -> Device:
    found = parse_device(f"{text}?python={sys.executable}&timeout=120")
    assert isinstance(found, SshDevice)
    return replace(found, sleep=lambda _: None)


def test_models_are_timed_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = double(tmp_path, monkeypatch, HERE)
    models = {"a": doubling(["n", 8]), "b": doubling(["n", 64])}
    found = measure_fully(Job(models, QUICK, batch=3, memory=True), device())
    assert list(found.latencies) == ["a", "b"]
    assert (found.runtime, found.latencies["b"].runs) == (ort.__version__, 12)
    assert all(row.memory_bytes for row in found.latencies.values())
    assert not list((tmp_path / "remote").iterdir())
    words = notes.read_text().splitlines()
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes"):
        assert words[words.index(option) - 1] == "-o"
    assert words[words.index("-p") + 1] == "2222"
    assert words[-3:-1] == ["--", "me@board"]
    assert words[-1].startswith(f"{sys.executable} -c 'import sys; exec(")


def test_an_error_there_is_the_error_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double(tmp_path, monkeypatch, HERE)
    with pytest.raises(MeasureError, match="model 'mine': ONNX Runtime cannot load"):
        measure({"mine": b"no model"}, QUICK, device=device())
    assert not list((tmp_path / "remote").iterdir())


def test_a_lost_connection_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    drop = f"if [ ! -e {seen} ]; then touch {seen}; echo 'Connection reset' >&2; exit 255; fi\n"
    double(tmp_path, monkeypatch, drop + HERE)
    assert measure({"a": doubling([2])}, QUICK, device=device())["a"].runs == 12


def test_an_answer_that_is_cut_off_with_the_connection_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    cut = 'for last; do :; done; sh -c "$last" | head -c 60; exit 255'
    double(tmp_path, monkeypatch, f"if [ ! -e {seen} ]; then touch {seen}; {cut}; fi\n{HERE}")
    assert measure({"a": doubling([2])}, QUICK, device=device())["a"].runs == 12


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ("Connection reset by peer", 255, "failed 3 times, at last with: Connection reset by peer"),
        ("", 255, "failed 3 times, at last with: no reason given"),
        ("Host key verification failed.", 255, r"must know .*ssh -p 2222 me@board.*ssh-keyscan"),
        (
            "me@board: Permission denied (publickey).",
            255,
            "does not let us in.*ssh-copy-id -p 2222",
        ),
        ("sh: python3: not found", 127, r"status 127 .*not found; .*\?python=PATH"),
        ("Killed", 137, "ended with status 137 and said: Killed"),
    ],
)
def test_what_ssh_says_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int, told: str
) -> None:
    notes = double(tmp_path, monkeypatch, f"echo '{said}' >&2; exit {status}")
    with pytest.raises(DeviceError, match=rf"(?s)^ssh://me@board:2222.*{told}"):
        device().check(QUICK)
    assert notes.read_text().splitlines().count("me@board") == (3 if "3 times" in told else 1)


@pytest.mark.parametrize("gone", [False, True])
def test_the_courier_ends_by_itself_and_clears_away(tmp_path: Path, gone: bool) -> None:
    """When its own time is over, and when nobody waits any more."""
    order = {"size": 0, "limit": 600 if gone else 0.5, "peaks": 0}
    agent = b"import time; print('started', flush=True); time.sleep(600)"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("../../agent.py")  # only the last part of a name counts
        member.size = len(agent)
        tar.addfile(member, io.BytesIO(agent))
    order["size"] = len(archive.getvalue())
    process = subprocess.Popen(
        [sys.executable, "-c", Path(courier.__file__).read_text()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order).encode() + b"\n" + archive.getvalue())
    process.stdin.flush()
    if gone:
        assert process.stdout.readline() == b"started\n"
        process.stdin.close()
        process.stdin = None
    said = b"" if gone else b"the time is over\n"
    assert (process.wait(), process.communicate()[1]) == (124, said)
    assert not list(tmp_path.iterdir())
