"""Devices `ssh://`: another machine with Python, numpy and onnxruntime, behind the system's ssh.

One connection for each measurement. Our own two files and the models go over standard input into a
fresh temporary folder there, which `compressor.device.courier` removes in any case. No name that a
user chose reaches the remote shell, and host keys are always checked.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from compressor.device.job import Job, Readings, Settings, answers, job_files, new_mark, readings
from compressor.device.said import SHOWN, last_line, read_text
from compressor.errors import DeviceError

ATTEMPTS = 3  # of a measurement whose connection is lost
_PAUSE = 2.0  # seconds before the second attempt, twice that before the third
_OPTIONS: Mapping[str, object] = {
    "BatchMode": "yes",  # never asks
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": 15,
    "ServerAliveInterval": 5,
    "ServerAliveCountMax": 3,
    "ClearAllForwardings": "yes",
    "LogLevel": "ERROR",
}
_LOST = 255  # what ssh returns where the connection failed, not the remote command


@dataclass(frozen=True)
class SshDevice:
    """A machine behind ssh; satisfies `compressor.device.job.Device`.

    Attributes:
        name: `ssh://user@host:port?python=PATH`, without what may change from run to run.
        destination: `user@host`, or a host alone.
        port: None for ssh's own default.
        python: the Python there.
        config: configuration file for ssh in place of the user's, or None.
        timeout: seconds for one measurement, or None for what `time_limit` says.
        sleep: waits for some seconds.
    """

    name: str
    destination: str
    port: int | None = None
    python: str = "python3"
    config: str | None = None
    timeout: float | None = None
    sleep: Callable[[float], None] = time.sleep

    def check(self, settings: Settings) -> None:
        """Returns if the machine can be reached, runs ONNX Runtime and has what is asked for."""
        self.take(Job({}, settings))

    def take(self, job: Job) -> Readings:
        """Times the models of a job there; see `compressor.device.job.Device`.

        A measurement whose connection is lost is taken again from the beginning, at most
        `ATTEMPTS` times in all.
        """
        mark = new_mark()
        archive = _archive(job_files(job, mark))
        limit = self.timeout or time_limit(job, len(archive))
        peaks = len(job.models) * job.memory
        order = {"size": len(archive), "limit": limit, "peaks": peaks}
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self.sleep(_PAUSE * attempt)
            done = self._run(json.dumps(order).encode() + b"\n" + archive, limit)
            if done.returncode == _LOST:  # whatever came may be cut off
                reason = self._refused(done.stderr)
                continue
            try:
                found = answers(done.stdout, mark)
                if len(found) == 1 + peaks or any("error" in answer for answer in found):
                    return readings(job, found)
            except DeviceError as error:
                raise DeviceError(f"{self.name}: {error}") from error
            raise self._no_answer(done)
        raise DeviceError(
            f"{self.name}: the connection failed {ATTEMPTS} times, at last with: {reason}; "
            "check the network and the machine, then run the same command again"
        )

    def _run(self, payload: bytes, limit: float) -> subprocess.CompletedProcess[str]:
        """What ssh returns and prints; it is killed when the limit is over."""
        courier = Path(__file__).with_name("courier.py").read_bytes()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(  # noqa: S603  (a list, no shell on this side)
                self._command(len(courier)), stdin=subprocess.PIPE, stdout=out, stderr=err,
                env={**os.environ, "LC_ALL": "C"},  # its messages are told apart below
            )  # fmt: skip
            # Standard input stays open: its end tells the courier that nobody waits any more.
            feeder = threading.Thread(target=_feed, args=(process.stdin, courier + payload))
            feeder.start()
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired as error:
                raise DeviceError(
                    f"{self.name}: no answer came within {limit:.0f} s; the machine may hang, or "
                    "be too slow: allow more with ?timeout=SECONDS"
                ) from error
            finally:
                process.kill()
                process.wait()
                feeder.join()
                _close(process.stdin)
            return subprocess.CompletedProcess([], status, read_text(out), read_text(err))

    def _command(self, size: int) -> list[str]:
        program = shutil.which("ssh")
        if program is None:
            raise DeviceError(f"{self.name}: the program ssh is needed, but is not installed")
        words = [program, "-T"]
        if self.config is not None:
            words += ["-F", self.config]
        for key, value in _OPTIONS.items():
            words += ["-o", f"{key}={value}"]
        if self.port is not None:
            words += ["-p", str(self.port)]
        start = f"import sys; exec(sys.stdin.buffer.read({size}))"
        remote = f"{shlex.quote(self.python)} -c {shlex.quote(start)}"
        return [*words, "--", self.destination, remote]

    def _refused(self, stderr: str) -> str:
        """What ssh says of a connection that may work the next time; raises for the others."""
        port = "" if self.port is None else f"-p {self.port} "
        said = last_line(stderr)[:SHOWN]
        if "Host key verification failed" in stderr or "IDENTIFICATION HAS CHANGED" in stderr:
            host = self.destination.rpartition("@")[2]
            raise DeviceError(
                f"{self.name}: ssh must know the machine's host key, but does not, or knows "
                f"another: {said}; connect once by hand (ssh {port}{self.destination}) "
                f"and compare the fingerprint, or add what `ssh-keyscan {port}{host}` prints to "
                "known_hosts once you have compared it"
            )
        if "Permission denied" in stderr or "Too many authentication failures" in stderr:
            raise DeviceError(
                f"{self.name}: the machine does not let us in: {said}; passwords are not "
                f"asked for: install a key (ssh-copy-id {port}{self.destination}) or load yours "
                "into ssh-agent"
            )
        return said or "no reason given"

    def _no_answer(self, done: subprocess.CompletedProcess[str]) -> DeviceError:
        said = (last_line(done.stderr) or last_line(done.stdout))[:SHOWN] or "nothing"
        remedy = "look at the program that it runs"
        if done.returncode in (126, 127):
            remedy = "name its Python 3 with ?python=PATH"
        return DeviceError(
            f"{self.name}: the machine must answer with times, but {self.python!r} ended with "
            f"status {done.returncode} and said: {said}; {remedy}"
        )


def time_limit(job: Job, size: int) -> float:
    """Seconds after which a measurement counts as hanging.

    Two minutes for connecting and importing, ten times what the schedule spends, since its fewest
    rounds can take longer, half a minute for each model to load (and each peak memory), and the
    way of the files at 250 kB a second.
    """
    models = len(job.models) * (1 + job.memory)
    return 120.0 + 10 * job.settings.schedule.seconds + 30.0 * models + size / 250e3


def _archive(files: Mapping[str, Path | bytes]) -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return found.getvalue()


def _feed(stdin: IO[bytes] | None, data: bytes) -> None:
    """Fills the pipe, which ends early where ssh does."""
    with contextlib.suppress(OSError):
        if stdin is not None:
            stdin.write(data)
            stdin.flush()


def _close(stdin: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):  # what is still in its buffer has nowhere to go
        if stdin is not None:
            stdin.close()
