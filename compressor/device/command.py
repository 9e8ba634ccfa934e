"""Devices `cmd:`: any command that runs a model somewhere and prints milliseconds.

So adb, a vendor's benchmark tool or a farm can be used. The command is started without a shell,
once in each turn; it does its own warm-up. Models are handed over under names of ours, so that a
shell further on (adb has one) gets nothing that a user chose.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from compressor.device.agent import in_rounds
from compressor.device.job import Job, Readings, Settings
from compressor.device.said import SHOWN, last_line, read_text
from compressor.errors import DeviceError, MeasureError, UsageError

ATTEMPTS = 3  # of a command that fails
# the end of a line: a number that stands apart, with the unit that is meant or none
_MILLISECONDS = re.compile(r"(?:^|[\s:=])(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?:ms)?$")
_CANNOT = {"batch": "{batch}", "threads": "{threads}"}


@dataclass(frozen=True)
class CommandDevice:
    """A command that prints milliseconds; satisfies `compressor.device.job.Device`.

    `{model}` in its words becomes the path of an ONNX file, `{threads}` and `{batch}` the numbers
    asked for. Its last line must end in a positive number: `12.3`, `12.3 ms`, `latency: 12.3ms`.

    Attributes:
        name: what the user wrote, `cmd:…`.
        words: program and arguments.
        timeout: seconds for one command.
        clock: seconds from any beginning.
    """

    name: str
    words: tuple[str, ...]
    timeout: float = 600.0
    clock: Callable[[], float] = time.monotonic

    def check(self, settings: Settings) -> None:
        """Returns if there is such a program and it can be told what the settings say."""
        if shutil.which(self.words[0]) is None:
            raise UsageError(
                f"{self.name}: a device's command must start with a program, but there is no "
                f"{self.words[0]!r}"
            )
        self._require_told(Job({}, settings))

    def take(self, job: Job) -> Readings:
        """Runs the command for each model in turns; see `compressor.device.job.Device`.

        A command that fails is started again, at most `ATTEMPTS` times in all; what prints no
        time is an error at once.
        """
        self._require_told(job)
        schedule, rng = job.settings.schedule, np.random.default_rng(job.seed)
        with tempfile.TemporaryDirectory(prefix="compressor-") as scratch:
            places = _placed(job.models, Path(scratch))
            turns = [partial(self._turn, name, place, job) for name, place in places.items()]
            end = self.clock() + schedule.seconds
            taken = in_rounds(turns, schedule.rounds, end, self.clock, rng)
        return Readings({n: np.asarray(t) for n, t in zip(places, taken, strict=True)})

    def _require_told(self, job: Job) -> None:
        """Nothing that was asked for may be left out in silence."""
        asked, usual = job.settings, Settings()
        text = " ".join(self.words)
        wrong = {
            "threads": asked.threads != usual.threads and "{threads}" not in text,
            "batch": job.batch != 1 and "{batch}" not in text,
            "provider": asked.provider != usual.provider,
            "optimisation": asked.optimisation != usual.optimisation,
            "affinity": asked.affinity != usual.affinity,
            "shape": bool(job.shapes),
            "memory": job.memory,
        }
        for what in (name for name, missed in wrong.items() if missed):
            remedy = f"write {_CANNOT[what]} into the command, or " if what in _CANNOT else ""
            raise UsageError(
                f"{self.name}: a device that is a command decides about {what} itself, but it was "
                f"asked for; {remedy}leave it out"
            )

    def _turn(self, name: str, model: Path, job: Job) -> list[float]:
        """Seconds that the command reports."""
        values = {"model": model, "threads": job.settings.threads, "batch": job.batch}
        words = list(self.words)
        for key, value in values.items():
            words = [word.replace(f"{{{key}}}", str(value)) for word in words]
        said = ""
        for _ in range(ATTEMPTS):
            done = self._run(words)
            if done.returncode == 0:
                return [milliseconds(done.stdout, f"{self.name}: model {name!r}") / 1e3]
            said = last_line(done.stderr) or last_line(done.stdout) or "nothing"
            said = f"status {done.returncode}, and it said: {said:.{SHOWN}}"
        raise DeviceError(
            f"{self.name}: model {name!r}: the command failed {ATTEMPTS} times, at last with {said}"
        )

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        try:
            # Files, not pipes: what the command leaves running must not keep us waiting.
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                status = _waited(words, out, err, self.timeout)
                return subprocess.CompletedProcess(words, status, read_text(out), read_text(err))
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"{self.name}: the command must end within {self.timeout:g} s, but did not; the "
                "device may hang"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise DeviceError(f"{self.name}: the command cannot be started: {reason}") from error


def _waited(words: list[str], out: IO[bytes], err: IO[bytes], timeout: float) -> int:
    """Exit status; where it does not come in time, everything that was started is ended."""
    process = subprocess.Popen(  # noqa: S603  (what the user asked to run; no shell)
        words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )
    try:
        return process.wait(timeout)
    except BaseException:  # Ctrl-C as well: in a session of its own the command gets none
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def milliseconds(output: str, what: str) -> float:
    """The time that ends the last line of an output.

    Accepted are `12.3`, `12.3 ms`, `1e1ms`, and either behind text that ends in a space, `:` or
    `=`. Another unit, a comma in the number, zero, or a sign is no time.

    Raises:
        DeviceError: there is none; the message starts with `what`.
    """
    line = last_line(output)
    found = _MILLISECONDS.search(line)
    value = float(found[1]) if found else 0.0
    if not 0 < value < math.inf:
        raise DeviceError(
            f"{what}: the last line must end in milliseconds above 0, as `12.3` or `12.3 ms`, but "
            f"the command printed {line[-SHOWN:]!r}"
        )
    return value


def split_words(text: str) -> tuple[str, ...]:
    """The words of a command, quoted as in a shell; quotes around the whole are taken off.

    Raises:
        UsageError: a quote is not closed, or there is no `{model}`.
    """
    try:
        words = shlex.split(text)
        if len(words) == 1:
            words = shlex.split(words[0])
    except ValueError as error:
        raise UsageError(f"a device's command must close its quotes, but got {text!r}") from error
    if not any("{model}" in word for word in words[1:]):
        raise UsageError(
            "a device's command has the form cmd:'program … {model} …', where {model} stands for "
            f"the ONNX file, but got {text!r}"
        )
    return tuple(words)


def _placed(models: Mapping[str, Path | bytes], folder: Path) -> dict[str, Path]:
    """Name to a copy of the model under a name of ours."""
    places = {}
    for index, (name, model) in enumerate(models.items()):
        place = places[name] = folder / f"model-{index}.onnx"
        if isinstance(model, bytes):
            place.write_bytes(model)
        elif model.is_file():
            shutil.copyfile(model, place)
        else:
            raise MeasureError(f"model {name!r}: there is no file {str(model)!r}")
    return places
