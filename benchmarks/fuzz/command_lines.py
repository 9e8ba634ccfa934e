"""Fuzzed command lines: every command with options and arguments that may or may not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from benchmarks.fuzz import network
from benchmarks.fuzz.mutate import WORDS, broken_text

_OPTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "compress": (
        ("--budget", "madds=50%"), ("--frontier", "madds=90%,80%"), ("--evaluations", "3"),
        ("--finetune", "1"), ("--keep", "last"), ("--score", "top1"), ("--score-epochs", "1"),
        ("--seed", "7"), ("--no-refit",), ("--ranking", "magnitude"), ("--int8",),
        ("--data", "imagefolder:."), ("--adapter", "generic"), ("--threads", "2"),
        ("--provider", "CPUExecutionProvider"), ("--device", "cmd:'true {model}'"),
        ("--latency-folder", "latency"), ("--json",), ("--out", "out"),
    ),
    "inspect": (("--adapter", "generic"), ("--json",), ("--data", "imagefolder:.")),
    "export": (("--opset", "18"), ("--static-batch",), ("--int8",)),
    "measure": (
        ("--batch", "2"), ("--shape", "x=1x3x8x8"), ("--threads", "1"), ("--optimisation", "basic"),
        ("--affinity", "0"), ("--seconds", "0.02"), ("--memory",), ("--profile",), ("--json",),
        ("--reference", "inside.onnx"), ("--profile-picture", "picture.svg"),
        ("--provider", "CPUExecutionProvider"), ("--device", "ssh://user@127.0.0.1:1"),
    ),
    "report": (("--trace",), ("--layer", "0"), ("--search", "1"), ("--json",)),
    "": (("--version",), ("--help",), ("--nothing",)),
}  # fmt: skip
_ARGUMENTS = {
    "compress": str(Path(network.__file__)), "inspect": "torchvision:resnet18", "export": "out",
    "measure": "inside.onnx", "report": "out", "": "",
}  # fmt: skip


def prepare(folder: Path, rng: Random) -> Callable[[], object]:
    """A command line in a folder that holds models; nothing in it can start a device's program."""
    from benchmarks.fuzz.readers import run_command  # noqa: PLC0415  (which lists this one)

    words = command_line(rng)
    # A name that a shell would not take for a name.
    (folder / "$(touch outside);.onnx").write_bytes((folder / "inside.onnx").read_bytes())
    os.chdir(folder)
    return lambda: run_command(*words)


def command_line(rng: Random) -> list[str]:
    """Words after `compressor`."""
    command = rng.choice(("compress", "compress", "inspect", "export", "measure", "measure",
                          "report", ""))  # fmt: skip
    words = [command] if rng.random() < 0.97 else [broken_text(command or "x", rng)]
    argument = _ARGUMENTS[command]
    if rng.random() < 0.3:
        argument = _other(argument, rng)
    words.append(argument)
    given: Sequence[tuple[str, ...]] = _OPTIONS[command]
    for option in rng.sample(given, rng.randrange(len(given) + 1)):
        name, *values = option
        words.append(broken_text(name, rng) if rng.random() < 0.03 else name)
        words += [_value(name, v, rng) for v in values]
    if command == "compress" and "--out" not in words:
        words += ["--out", "out"]
    return [word.replace("\x00", "?").replace("\ud800", "?") for word in words if word]


def _other(argument: str, rng: Random) -> str:
    odd = ("$(touch outside);.onnx", "..", ".", "/", "/dev/null", "-", "a.b.c", "timm:", "x:y")
    return rng.choice((*odd, *WORDS[:8], broken_text(Path(argument).name or "x", rng)))


def _value(name: str, value: str, rng: Random) -> str:
    if rng.random() > 0.25:
        return value
    broken = broken_text(value, rng)
    if name == "--device":  # whatever else it is, it starts nothing
        return broken if not broken.startswith("cmd:") else "cmd:" + broken[4:].replace("/", "")
    return broken
