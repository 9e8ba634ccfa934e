"""What is fuzzed: for each reader, how its input is broken, and how it is read.

Where there is a command that reads the input, that command is run, as a user would.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeAlias

from benchmarks.fuzz import command_lines, network, targets, valid
from benchmarks.fuzz.mutate import broken_bytes, broken_json, broken_text, broken_value
from benchmarks.fuzz.mutate_files import (
    break_bytes,
    break_image,
    break_journal,
    break_json,
    break_kind,
    break_model,
    break_weights,
)
from cli.imagefolder import default_transform, image_folder
from cli.main import main
from compressor.budget import parse_goals
from compressor.deploy import artefacts
from compressor.device.command import milliseconds
from compressor.device.devices import parse_device
from compressor.device.job import Job, Settings, answers, readings
from compressor.device.profile import read_events
from compressor.latency.cache import read_measured

Read: TypeAlias = Callable[[], object]
Prepare: TypeAlias = Callable[[Path, Random], Read]


class RefusedError(Exception):
    """A command ended with one of our messages and a code that says so."""


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
        folder: of the valid inputs, what is copied for each case; empty for nothing.
        prepare: breaks the copy and hands back what reads it.
        weight: share of all cases, beside the others'.
    """

    folder: str
    prepare: Prepare
    weight: int = 10


def run_command(*words: str) -> None:
    """Runs the command line in this process.

    Raises:
        RefusedError: it ended with a code of ours and a message.
        Exception: whatever else got out of it.
    """
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(args=list(words), prog_name="compressor")
        except SystemExit as ended:
            code = ended.code
    err.flush()
    said = err.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    if code in (0, None):
        return
    if code in (1, 2) and said.strip() and "Traceback" not in said:
        raise RefusedError(said.strip().splitlines()[-1][:300])
    raise AssertionError(f"exit code {code!r}, and it said {said[-300:]!r}")


def _file(name: str, break_it: Callable[[Path, Random], None], *words: str) -> Prepare:
    """A file of a run that is broken, or is no file any more; then a command reads the run."""

    def prepare(run: Path, rng: Random) -> Read:
        (break_kind if rng.random() < 0.12 else break_it)(run / name, rng)
        return lambda: run_command(*(str(run) if word == "RUN" else word for word in words))

    return prepare


def _load(name: str, break_it: Callable[[Path, Random], None]) -> Prepare:
    def prepare(run: Path, rng: Random) -> Read:
        (break_kind if rng.random() < 0.12 else break_it)(run / name, rng)
        return lambda: artefacts.load(run, network.build_model())

    return prepare


def _frontier(run: Path, rng: Random) -> Read:
    if rng.random() < 0.2:
        break_kind(run / "madds-60pct", rng)
    elif rng.random() < 0.2:
        break_kind(run / "madds-50pct" / "result.json", rng)
    else:
        break_json(run / "frontier.json", rng)
    return lambda: run_command("report", str(run))


def _resume(run: Path, rng: Random) -> Read:
    path = run / "journal.sqlite"
    (break_kind if rng.random() < 0.15 else break_journal)(path, rng)
    if rng.random() < 0.1:
        (run / ".unfinished").symlink_to("../outside")
    return lambda: valid.search(run)


def _export(run: Path, rng: Random) -> Read:
    """The target that a run names; a run of someone else must not have its code executed."""
    path = run / "result.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    evil = run / "evil.py"
    evil.write_text("open('../outside/executed.txt', 'w').write('x')\n", encoding="utf-8")
    data["settings"]["target"] = rng.choice(
        (str(evil), f"{run.name}/evil.py", "evil", "this", "antigravity", "torchvision:x", "", "/")
    )
    if rng.random() < 0.3:
        data = broken_value(data, rng)
    path.write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")
    sys.modules.pop("evil", None)
    return lambda: run_command("export", str(run))


def _latency(folder: Path, rng: Random) -> Read:
    path = folder / valid.MACHINE.file_name
    (break_kind if rng.random() < 0.12 else break_json)(path, rng)
    return lambda: read_measured(folder, valid.MACHINE)


def _model(folder: Path, rng: Random) -> Read:
    name = rng.choice(("inside.onnx", "inside.onnx", "beside.onnx"))
    (break_kind if rng.random() < 0.06 else break_model)(folder / name, rng)
    if rng.random() < 0.2:
        (break_kind if rng.random() < 0.5 else break_bytes)(folder / "beside.bin", rng)
    more = rng.choice(((), ("--profile",), ("--memory",)))
    said = ("--seconds", "0.02", "--timeout", "2", *more)
    return lambda: run_command("measure", str(folder / name), *said)


def _images(folder: Path, rng: Random) -> Read:
    for path in rng.sample(sorted(folder.rglob("*.*")), rng.choice((1, 1, 3))):
        (break_kind if rng.random() < 0.1 else break_image)(path, rng)
    if rng.random() < 0.1:
        (folder / rng.choice(("99", "²", "dog\x1b[1m", "-1"))).mkdir()

    def read() -> None:
        found = image_folder(f"imagefolder:{folder}", default_transform, 5)
        for _ in (*found.calibration, *found.validation):
            pass

    return read


def _device(_: Path, rng: Random) -> Read:
    texts = (
        "local", "ssh://user@host:22?python=/usr/bin/python3&timeout=30", "ssh://[::1]:22",
        "cmd:'bench {model} --threads {threads}'", "cmd:bench {model}",
    )  # fmt: skip
    text = broken_text(rng.choice(texts), rng)
    return lambda: parse_device(text)


def _budget(_: Path, rng: Random) -> Read:
    texts = ("madds=50%", "params=2M, latency=4ms", "madds=40%..50%", "latency=3ms..4ms")
    frontier = ("madds=90%,80%,70%", "latency=4ms,3ms")
    budget = broken_text(rng.choice(texts), rng)
    other = broken_text(rng.choice(frontier), rng) if rng.random() < 0.4 else None
    return lambda: parse_goals(budget, other)


def _answer(folder: Path, rng: Random) -> Read:
    mark = "compressor-0 "
    text = (folder / "answer.json").read_text(encoding="utf-8")
    if rng.random() < 0.2:
        text = json.dumps({"error": {"kind": "model", "model": 0, "message": "no"}})
    memory = rng.random() < 0.3
    lines = [broken_json(text, rng) for _ in range(rng.choice((1, 1, 1, 1, 2)))]
    if memory:
        peaks = (1, 2, -1, 1e400, "x", None, [], 10**400)
        lines += [json.dumps({"peak": rng.choice(peaks)}) for _ in range(2)]
    said = "noise\n" + "\n".join(mark + line for line in lines)
    if rng.random() < 0.1:
        said = broken_bytes(said.encode("utf-8", "replace"), rng).decode("utf-8", "replace")
    job = Job({"a": b"", "b": b""}, Settings(), memory=memory)
    return lambda: readings(job, answers(said, mark))


def _printed(_: Path, rng: Random) -> Read:
    text = broken_text(rng.choice(("latency: 12.3 ms", "12.3", "a\nb = 1e1ms")), rng)

    def read() -> None:
        assert 0 < milliseconds(text, "the device") < math.inf  # noqa: S101

    return read


def _profile(_: Path, rng: Random) -> Read:
    events = [
        {"name": "model_run", "cat": "Session", "ts": 0, "dur": 10, "args": {}},
        {"name": "conv_kernel_time", "cat": "Node", "ts": 1, "dur": 5, "args": {"op_name": "Conv"}},
    ]
    text = broken_json(json.dumps(events), rng)

    def read() -> None:
        with contextlib.suppress(ValueError, RecursionError):  # the caller's, tested with the file
            read_events(json.loads(text), 1)

    return read


READERS: Mapping[str, Reader] = {
    "result": Reader("run", _file("result.json", break_json, "report", "RUN"), 14),
    "frontier": Reader("frontier", _frontier, 10),
    "architecture": Reader("run", _load("architecture.json", break_json), 14),
    "weights": Reader("run", _load("model.safetensors", break_weights), 10),
    "trace": Reader("run", _file("journal.sqlite", break_journal, "report", "RUN", "--trace"), 12),
    "trace-json": Reader(
        "run", _file("journal.sqlite", break_journal, "report", "RUN", "--trace", "--json"), 4
    ),
    "resume": Reader("run", _resume, 6),
    "export": Reader("run", _export, 3),
    "latency": Reader("latency", _latency, 8),
    "onnx": Reader("models", _model, 10),
    "program": Reader("targets", targets.program, 10),
    "graph": Reader("models", targets.graph, 10),
    "checkpoint": Reader("targets", targets.checkpoint, 5),
    "tensors": Reader("targets", targets.tensors, 5),
    "images": Reader("images", _images, 8),
    "device": Reader("", _device, 8),
    "budget": Reader("", _budget, 8),
    "answer": Reader("texts", _answer, 10),
    "printed": Reader("", _printed, 4),
    "profile": Reader("", _profile, 4),
    "command": Reader("models", command_lines.prepare, 14),
}


def reader_of(number: int, seed: int) -> str:
    """Which reader a case is for; each gets its share in every stretch of cases."""
    names = [name for name, reader in READERS.items() for _ in range(reader.weight)]
    Random(seed).shuffle(names)  # noqa: S311
    return names[number % len(names)]


def generator(reader: str, number: int, seed: int) -> Random:
    """What decides a case."""
    return Random(f"{seed} {reader} {number}")  # noqa: S311
