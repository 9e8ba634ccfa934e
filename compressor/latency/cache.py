"""Measured parts in a file for each device: what was timed once is not timed again.

The file can be copied to others with the same device. It is read as data from anywhere: what is
not a table of positive numbers is refused. Knows no torch and no ONNX.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compressor.device import agent
from compressor.device.measure import Settings
from compressor.errors import RunError
from compressor.files import write_json
from compressor.plain import decode, encode
from compressor.untrusted import read_json

_FORMAT = 2


@dataclass(frozen=True)
class Machine:
    """What a time depends on besides the model.

    Attributes:
        device: the processor, as its vendor calls it.
        runtime: the runtime and its version.
        provider: ONNX Runtime's execution provider.
        threads: threads within one operator.
    """

    device: str
    runtime: str
    provider: str
    threads: int

    @property
    def file_name(self) -> str:
        """Name of the file of its measured parts."""
        told = "\n".join(map(str, encode(self).values()))
        return f"latency-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True)
class Timed:
    """Time of one part.

    Attributes:
        ratio: share of the reference part's time.
        low: lower end of the 95 % interval of the ratio.
        high: upper end of it.
    """

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """All parts that were measured on a machine.

    Attributes:
        machine: which one.
        reference_ms: what the reference part took when it was fastest.
        parts: signature to time.
        format: version of this form of file.
    """

    machine: Machine
    reference_ms: float
    parts: Mapping[str, Timed] = field(default_factory=dict)
    format: int = _FORMAT


def this_machine(settings: Settings) -> Machine:
    """The machine that this program runs on, with these settings."""
    here = agent.facts()
    processor = f"{here['processor']} {platform.machine()}"
    return Machine(processor, f"onnxruntime {here['runtime']}", settings.provider, settings.threads)


def read_measured(folder: Path, machine: Machine) -> Measured | None:
    """What was measured on this machine before, or None.

    Raises:
        RunError: the file is there, but is no table of measured parts, or of another machine.
    """
    path = folder / machine.file_name
    try:
        data = read_json(path)
        found = decode(Measured, data)
        _check(found, machine)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"a file of measured latencies must hold positive times of parts, but {str(path)!r} "
            f"cannot be used: {error}; delete it, and the parts are measured again"
        ) from error
    return found


def write_measured(folder: Path, measured: Measured) -> Path:
    """Keeps what was measured; a reader sees the old file or the new one, never half of one.

    Raises:
        RunError: the file cannot be written.
    """
    return write_json(folder / measured.machine.file_name, encode(measured))


def _check(found: Measured, machine: Machine) -> None:
    if found.format != _FORMAT:
        raise ValueError(f"it has form {found.format}, but {_FORMAT} is known")
    if found.machine != machine:
        raise ValueError(f"it is of {found.machine}, not of {machine}")
    times = [found.reference_ms]
    for timed in found.parts.values():
        times += [timed.low, timed.ratio, timed.high]
        if not timed.low <= timed.ratio <= timed.high:
            raise ValueError(f"{timed} is not within its interval")
    wrong = [t for t in times if not (math.isfinite(t) and t > 0)]
    if wrong:
        raise ValueError(f"it holds the time {wrong[0]}")
