"""Code blocks of the documentation, and the running of a page as a reader would.

A block of Python that begins with a comment `# NAME.py` is a file that the reader saves; any other
continues the Python session of its page. A block of shell is run line by line in the page's folder,
with less to search and to time where the page leaves that open (`SHORTER`).

`<!-- not run: REASON -->` on the line before a block says that it cannot be run here. What is not
run is still checked: commands, options, budgets, modules and extras must be there.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import main
from compressor.budget import parse_goals
from compressor.device.devices import parse_device

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).resolve().parents[1]
REASONS = {
    "make": "makes an environment of its own and takes minutes; what it calls is checked",
    "benchmark": "takes minutes to hours and images; the figures of its page came of it",
    "pip": "installs; tests/test_wheel.py installs the wheel",
}
"""Kinds of lines that no test runs, and why."""
SHORTER = {"compress": ("--evaluations", "8"), "measure": ("--seconds", "0.3")}
"""What a test adds to commands that leave it to the default, so that they end soon."""
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w+)?.*")
_MARKER = re.compile(r" *<!-- not run: (?P<reason>.+) -->")
_VARIABLE = re.compile(r"[A-Z_]+=")  # set for one command
_FILE = re.compile(r"# (?P<name>\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """Code of a page; `reason` is why it is not run, or empty."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        """Where a reader finds it."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file as which a reader saves it."""
        found = _FILE.match(self.text) if self.language == "python" else None
        return found["name"] if found else None

    def commands(self) -> Iterator[list[str]]:
        """The words of each line of shell."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and _VARIABLE.match(words[0]):
                del words[0]
            if words:
                yield words


def pages() -> list[str]:
    """Every page that a reader can open, from the root of the repository."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page that have a language, in order."""
    lines = ((ROOT / page).read_text(encoding="utf-8") if text is None else text).splitlines()
    found, start, before = [], -1, ""
    for number, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            continue
        if start < 0:
            start, before = number, lines[number - 1] if number else ""
            continue
        first = _FENCE.fullmatch(lines[start])
        assert first is not None
        body = "\n".join(part.removeprefix(first["indent"]) for part in lines[start + 1 : number])
        marker = _MARKER.fullmatch(before)
        if first["language"]:
            reason = marker["reason"] if marker else ""
            found.append(Block(page, start + 1, first["language"], body + "\n", reason))
        start = -1
    assert start < 0, f"{page}: the block of line {start + 1} does not end"
    return found


def kind(words: list[str]) -> str:
    """What a line of shell is about: `compressor`, `python`, a kind of `REASONS`, or `other`."""
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        return "benchmark"
    if words[0] == "python" and len(words) == 2:
        return "python"
    return words[0] if words[0] in ("compressor", *REASONS) else "other"


def not_run(block: Block) -> set[str]:
    """Why a block, or a line of it, is not run; empty where all of it is."""
    if block.reason:
        return {block.reason}
    if block.language != "sh":
        return set()
    return {REASONS[kind(words)] for words in block.commands() if kind(words) in REASONS}


def check(block: Block) -> None:
    """What can be known of a block without running it."""
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "toml":
        if sys.version_info >= (3, 11):
            tomllib.loads(block.text)
    elif block.language == "sh":
        for words in block.commands():
            CHECKS.get(kind(words), _nothing)(words)


def _nothing(words: list[str]) -> None:
    del words


def _check_compressor(words: list[str]) -> None:
    """The command line is accepted; that a file is not there counts for nothing."""
    command = main.get_command(click.Context(main), words[1]) if len(words) > 1 else main
    assert command is not None, words
    parser = command.make_parser(click.Context(command))
    values, left, _ = parser.parse_args(words[2:])
    assert not left, words
    names = {parameter.name: parameter for parameter in command.params}
    for name, value in values.items():
        if isinstance(names[name].type, click.Choice | click.types.IntParamType):
            names[name].type_cast_value(click.Context(command), value)
    if "budget" in values:
        parse_goals(values["budget"], values.get("frontier"))
    if "device" in values:
        parse_device(values["device"])


def _check_make(words: list[str]) -> None:
    done = subprocess.run(
        ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if Path(program).name == "compressor":
            _check_compressor(["compressor", *arguments])


def _check_pip(words: list[str]) -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert words[1] == "install"
    named = re.findall(r"\.\[([\w,]+)\]", " ".join(words))
    assert {extra for group in named for extra in group.split(",")} <= extras
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()


def _check_benchmark(words: list[str]) -> None:
    """The module is there, and its options are, as texts in it."""
    where = ROOT / words[2].replace(".", "/")
    files = sorted(where.glob("*.py")) if where.is_dir() else [where.with_suffix(".py")]
    texts = {
        node.value
        for file in [*files, ROOT / "benchmarks" / "support.py"]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= texts, (words, options - texts)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "compressor": _check_compressor,
    "make": _check_make,
    "pip": _check_pip,
    "benchmark": _check_benchmark,
}


def run(block: Block, names: dict[str, Any]) -> None:
    """Runs a block in the current folder; `names` is the page's Python session."""
    if block.language == "python" and block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        exec(compile(block.text, block.place, "exec"), names)  # noqa: S102  (the block is ours)
    elif block.language == "sh":
        for words in block.commands():
            if kind(words) not in REASONS:
                _run_line(block, words)


def _run_line(block: Block, words: list[str]) -> None:
    if kind(words) == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    assert kind(words) == "compressor", (
        f"{block.place}: a test runs compressor and python FILE; mark anything else as not run: "
        f"{shlex.join(words)}"
    )
    option = SHORTER.get(words[1], ())
    more = () if set(option) & set(words) else option
    with pytest.raises(SystemExit) as done:
        main([*words[1:], *more], prog_name="compressor")
    assert not done.value.code, f"{block.place}: {shlex.join(words)} ended with {done.value.code}"
