"""Devices behind ssh, against a real server on this machine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from compressor.device.devices import parse_device
from compressor.device.job import Job, Settings
from compressor.device.measure import measure, measure_fully
from compressor.device.ssh import ATTEMPTS, SshDevice
from compressor.device.timing import Schedule
from compressor.errors import DeviceError, MeasureError, UsageError
from tests.sshd import Server, running
from tests.test_devices import alive
from tests.test_measure import doubling

QUICK = Settings(schedule=Schedule(warmup=2, repeats=2, rounds=6, seconds=1e-6))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """The folder in which the machine keeps its temporary files."""
    (tmp_path / "remote").mkdir()
    return tmp_path / "remote"


def python(tmp_path: Path, remote: Path, before: str = "", after: str = '"$@"') -> Path:
    """A Python for the other machine: the tests' own, with its temporary files in `remote`."""
    path = tmp_path / "my python"
    path.write_text(f"#!/bin/sh\nexport TMPDIR={remote}\n{before}\nexec {sys.executable} {after}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def connect(server: Server, python: Path | str, **options: object) -> SshDevice:
    device = parse_device(server.device(python=python, **options))
    assert isinstance(device, SshDevice)
    return replace(device, sleep=lambda _: None)


def empty(folder: Path) -> bool:
    """Whether what is cleared away by another process is gone soon."""
    for _ in range(100):
        if not list(folder.iterdir()):
            return True
        time.sleep(0.1)
    return False


def test_models_are_timed_on_the_other_machine(
    server: Server, tmp_path: Path, remote: Path
) -> None:
    path = tmp_path / "$(touch pwned) 'b'.onnx"
    path.write_bytes(doubling(["n", 64]))
    device = connect(server, python(tmp_path, remote, "echo Welcome; echo mark {}"))
    models = {"a": doubling(["n", 8]), "b": path}
    found = measure_fully(Job(models, QUICK, batch=3, memory=True), device)
    assert list(found.latencies) == ["a", "b"]
    assert found.latencies["b"].runs == 12
    assert all((row.memory_bytes or 0) > 0 for row in found.latencies.values())
    assert (found.runtime, found.device) == (ort.__version__, device.name)
    assert found.processor
    assert empty(remote)


def test_a_check_finds_what_is_missing_before_anything_is_measured(
    server: Server, tmp_path: Path, remote: Path
) -> None:
    device = connect(server, python(tmp_path, remote))
    device.check(QUICK)
    with pytest.raises(UsageError, match=r"CPUExecutionProvider.*'NoSuchProvider'"):
        device.check(replace(QUICK, provider="NoSuchProvider"))


def test_errors_over_there_are_those_of_here(server: Server, tmp_path: Path, remote: Path) -> None:
    device = connect(server, python(tmp_path, remote))
    with pytest.raises(MeasureError, match=r"model 'mine': ONNX Runtime cannot load .*model-1"):
        measure({"good": doubling([2]), "mine": b"no model"}, QUICK, device=device)
    with pytest.raises(UsageError, match=r"model 'mine': input 'x'.*dimension 1 is free"):
        measure({"mine": doubling(["n", "m"])}, QUICK, device=device)
    assert empty(remote)


def test_a_host_that_is_not_known_is_refused_with_the_remedy(server: Server) -> None:
    config = server.client("unknown", UserKnownHostsFile="/dev/null")
    with pytest.raises(DeviceError, match=r"host key, but does not.*by hand \(ssh -p.*ssh-keyscan"):
        connect(server, sys.executable, config=config).check(QUICK)


def test_a_host_with_another_key_is_refused(server: Server) -> None:
    stranger = (server.folder / "stranger.pub").read_text()
    known = server.folder / "changed_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {stranger}")
    config = server.client("changed", UserKnownHostsFile=known)
    with pytest.raises(DeviceError, match="or knows another"):
        connect(server, sys.executable, config=config).check(QUICK)
    assert known.read_text() == f"[127.0.0.1]:{server.port} {stranger}"


def test_a_configuration_cannot_turn_the_check_of_hosts_off(server: Server) -> None:
    config = server.client(
        "careless", UserKnownHostsFile="/dev/null", StrictHostKeyChecking="no", BatchMode="no"
    )
    with pytest.raises(DeviceError, match="host key"):
        connect(server, sys.executable, config=config).check(QUICK)


def test_a_key_that_does_not_fit(server: Server) -> None:
    config = server.client("stranger_config", IdentityFile=server.folder / "stranger")
    with pytest.raises(DeviceError, match=r"does not let us in.*Permission denied.*ssh-copy-id"):
        connect(server, sys.executable, config=config).check(QUICK)


def test_nobody_listens(server: Server) -> None:
    waits: list[float] = []
    device = replace(connect(server, "python3"), port=1, sleep=waits.append)
    with pytest.raises(DeviceError, match=r"failed 3 times, at last with: .*refused"):
        device.check(QUICK)
    assert waits == [2.0, 4.0]


def test_a_machine_without_python(server: Server) -> None:
    with pytest.raises(DeviceError, match=r"status 127.*Python 3 with \?python=PATH"):
        connect(server, "/no/such/python").check(QUICK)


def test_a_machine_without_onnxruntime(server: Server, tmp_path: Path, remote: Path) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "onnxruntime.py").write_text("raise ImportError('no onnxruntime here')")
    there = python(tmp_path, remote, f"export PYTHONPATH={tmp_path / 'fake'}")
    with pytest.raises(DeviceError, match=r"numpy and onnxruntime, but says: no onnxruntime here"):
        connect(server, there).check(QUICK)
    assert empty(remote)


@pytest.mark.parametrize("said", ["echo 12.3 ms", "echo '{\"turns\": 1}'", "true"])
def test_nonsense_is_an_error(server: Server, tmp_path: Path, said: str) -> None:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{said}\n")
    path.chmod(0o755)
    with pytest.raises(DeviceError, match=r"must answer with times, but .* ended with status 0"):
        connect(server, path).check(QUICK)


def test_an_agent_that_dies(server: Server, tmp_path: Path, remote: Path) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 11)")
    there = python(tmp_path, remote, f"export PYTHONPATH={tmp_path / 'fake'}")
    with pytest.raises(DeviceError, match=r"status 1 and said: the agent was ended by signal 11"):
        connect(server, there).check(QUICK)
    assert empty(remote)


def hanging(tmp_path: Path, remote: Path) -> Path:
    """A Python whose onnxruntime never comes; the agent notes its own process."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "onnxruntime.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r})"
        ".write_text(str(os.getpid()))\ntime.sleep(600)"
    )
    return python(tmp_path, remote, f"export PYTHONPATH={tmp_path / 'fake'}")


def test_a_machine_that_hangs_is_given_up_and_left_clean(
    server: Server, tmp_path: Path, remote: Path
) -> None:
    device = connect(server, hanging(tmp_path, remote), timeout=10)
    with pytest.raises(DeviceError, match=r"no answer came within 10 s.*\?timeout=SECONDS"):
        device.check(QUICK)
    assert not alive(int((tmp_path / "pid").read_text()))
    assert empty(remote)


def test_who_asked_is_killed_and_the_machine_is_left_clean(
    server: Server, tmp_path: Path, remote: Path
) -> None:
    """Its own limit is far away: what ends the agent is the end of the connection."""
    device = server.device(python=hanging(tmp_path, remote), timeout=600)
    code = (
        "import sys\nfrom compressor.device.devices import parse_device\n"
        "from compressor.device.job import Settings\nparse_device(sys.argv[1]).check(Settings())"
    )
    asking = subprocess.Popen([sys.executable, "-c", code, device], start_new_session=True)
    for _ in range(300):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.1)
    os.killpg(asking.pid, signal.SIGKILL)
    asking.wait()
    assert not alive(int((tmp_path / "pid").read_text()))
    assert empty(remote)


# Ends the connection from the other side: ssh's server, or the shell that it started.
DROP = """
if [ ! -e {seen}-{last} ]; then
    touch {seen}-$(ls {seen}-* 2>/dev/null | wc -l)
    kill -9 $PPID
    sleep 5
fi
"""


def dropping(tmp_path: Path, remote: Path, times: int) -> Path:
    """A Python that ends the first connections, then works."""
    return python(tmp_path, remote, DROP.format(seen=tmp_path / "seen", last=times - 1))


def test_a_connection_that_is_dropped_is_tried_again(
    server: Server, tmp_path: Path, remote: Path
) -> None:
    device = connect(server, dropping(tmp_path, remote, ATTEMPTS - 1))
    assert measure({"a": doubling([2])}, QUICK, device=device)["a"].runs == 12
    assert len(list(tmp_path.glob("seen-*"))) == ATTEMPTS - 1
    assert empty(remote)


def test_a_connection_that_is_always_dropped(server: Server, tmp_path: Path, remote: Path) -> None:
    device = connect(server, dropping(tmp_path, remote, 99))
    with pytest.raises(DeviceError, match=f"the connection failed {ATTEMPTS} times"):
        measure({"a": doubling([2])}, QUICK, device=device)
    assert len(list(tmp_path.glob("seen-*"))) == ATTEMPTS


def test_no_thread_and_no_process_is_left(server: Server, tmp_path: Path, remote: Path) -> None:
    before = threading.active_count()
    connect(server, python(tmp_path, remote)).check(QUICK)
    assert threading.active_count() == before


def test_without_ssh_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="the program ssh is needed"):
        parse_device("ssh://somewhere").check(QUICK)
