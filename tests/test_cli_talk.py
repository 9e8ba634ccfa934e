"""What commands say while they work, how much of it, on how wide a terminal; and completion."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from torch import nn

from cli.main import main
from cli.progress import PlainLines, watching
from cli.tables import closing_table, promises_table
from compressor.errors import CheckError
from compressor.progress import Event
from compressor.report.result import BudgetRow, Figures
from compressor.run import pipeline
from compressor.run.pipeline import Result as Done
from tests.test_result import make_summary
from tests.test_target import GOOD

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = (
    BudgetRow("madds", "madds=50%", 20_300_000, 20_200_000),
    BudgetRow("latency", "latency=40%..60%", 0.9, 0.92, 0.6, 0.95),
)


# what the double warns of is no error of the test
pytestmark = pytest.mark.filterwarnings("default:a python warning")


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A call whose chain is a double that tells, logs and warns."""

    def compress(model: nn.Module, example: object, *, out: Path, **options: Any) -> Done:
        logging.getLogger("somebody").info("a detail")
        logging.getLogger("somebody").warning("a log message")
        warnings.warn("a python warning", stacklevel=2)
        options["progress"](Event("search", 1, 2, "best 0.9"))
        summary = replace(make_summary(), budgets=BUDGETS)
        summary.write(out)
        return Done(model, summary.frontier, out / "model.onnx", out, summary)

    monkeypatch.setattr(pipeline, "compress", compress)
    (tmp_path / "net.py").write_text(GOOD)
    return ("compress", tmp_path / "net.py", "--budget", "madds=50%", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "heard", "silent"),
    [
        ((), ["search 1/2", "a log message"], ["a detail"]),
        (("--log-level", "warning"), ["a log message"], ["search 1/2", "a detail"]),
        (("--log-level", "error"), [], ["search", "a log message", "a detail", "warning"]),
        (("--quiet",), [], ["search", "a log message", "a detail", "warning"]),
        (("-q", "--log-level", "error"), [], ["search"]),
        (("--log-level", "debug"), [" s  search 1/2", "a log message", "a detail"], []),
    ],
)
def test_how_much_is_said_is_asked_for(
    words: tuple[object, ...], options: tuple[str, ...], heard: list[str], silent: list[str]
) -> None:
    before = (logging.root.level, list(logging.root.handlers), list(warnings.filters))
    result = call(*words, *options)
    assert result.exit_code == 0, result.output
    assert "20.2M" in result.stdout  # the result is said in any case
    assert [said for said in heard if said not in result.stderr and options] == []
    assert [said for said in silent if said in result.stderr] == []
    assert (logging.root.level, list(logging.root.handlers), list(warnings.filters)) == before


def test_it_can_be_said_before_the_command_too(words: tuple[object, ...]) -> None:
    assert call("--quiet", *words).stderr == ""
    assert "search 1/2" in call(*words).stderr  # nothing of it stays


def test_quiet_and_a_level_that_contradicts_it_are_refused(words: tuple[object, ...]) -> None:
    result = call(*words, "--quiet", "--log-level", "debug")
    assert (result.exit_code, "say different things" in result.stderr) == (2, True)


def test_errors_are_said_in_any_case_and_debug_says_where_they_came_from(
    words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compress(*_: object, **__: object) -> None:
        raise CheckError("ONNX differs")

    monkeypatch.setattr(pipeline, "compress", compress)
    assert call(*words, "-q").stderr == "error: ONNX differs\n"
    shown = call(*words, "--log-level", "debug").stderr
    assert "Traceback" in shown
    assert shown.endswith("error: ONNX differs\n")


def test_the_command_of_a_report_has_no_word_of_it(
    words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    inner = pipeline.compress

    def compress(*args: Any, **how: Any) -> Done:
        asked.update(how)
        return inner(*args, **how)

    monkeypatch.setattr(pipeline, "compress", compress)
    call(*words, "--quiet")
    assert "quiet" not in asked["command"]
    assert asked["origin"]["folder"] == str(Path.cwd())


def drawn(width: int, *events: Event, **environment: Any) -> list[str]:
    """The last lines of a live display on a terminal of some width."""
    console = Console(force_terminal=True, width=width, color_system=None, legacy_windows=False)
    with console.capture() as shown, watching(console) as progress:
        for event in events:
            progress(event)
    return shown.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_line_of_progress_fits_the_terminal(width: int) -> None:
    note = "best score in budget 0.9764 / 0.9512 / 0.9011, last failed: out of memory"
    lines = drawn(width, Event("score the original", 1, 1), Event("search", 150, 200, note))
    shown = [line.split("\x1b[2K")[-1] for line in lines]
    search = [line for line in shown if "search" in line][-1]
    assert len(search.rstrip()) <= width
    assert "150/200" in search
    assert ("━" in search) == (width >= 60)
    assert ("best" in search) == (width >= 60)


def test_time_left_is_told_from_the_units_or_from_what_is_known_beforehand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    lines = PlainLines(Console(width=200), clock=lambda: now[0], every=0.0)
    lines(Event("measure", 0, None, "local", seconds=8.0))
    now[0] = 3.0
    lines(Event("measure", 0, None, "local again", seconds=8.0))
    lines(Event("export", 0, 2))
    now[0] = 7.0
    lines(Event("export", 1, 2))
    assert capsys.readouterr().out.splitlines() == [
        "measure, local, 8 s left", "measure, local again, 5 s left",
        "export 0/2", "export 1/2, 4 s left",
    ]  # fmt: skip


def test_a_live_display_counts_down_what_is_known_beforehand() -> None:
    shown = "\n".join(drawn(100, Event("measure", 0, None, "local", seconds=500.0)))
    assert "8 min left" in shown


def test_a_stage_that_begins_anew_starts_its_count_again() -> None:
    events = [Event("export", 2, 2), Event("export", 0, 2, "the next"), Event("export", 1, 2)]
    shown = "\n".join(drawn(120, *events))
    assert "1/1" in shown or "1/2" in shown  # and nothing raised


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(force_terminal=True, width=80)
    with console.capture() as shown, watching(console) as progress:
        progress(Event("search", 1, 2, "best"))
    assert shown.get() == "search 1/2, best\n"


def test_the_closing_table_says_what_was_promised_and_what_was_measured(
    words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.split() for line in call(*words).stdout.splitlines()]
    assert ["Budget", "Promised", "Measured"] in lines
    shown = [" ".join(line) for line in lines]
    assert "madds=50% at most 20.3M 20.2M met" in shown
    assert "latency=40%..60% 0.6 ms to 0.9 ms 0.92 ms, 95 % below 0.95 ms missed" in shown


@pytest.mark.parametrize("width", [40, 100])
def test_tables_fit_and_have_no_colour_without_one(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=width)
    figures = Figures(40_600_000, 270_000, 0.9173, 1.51, 1_100_000)
    with console.capture() as shown:
        console.print(closing_table(figures, figures, "top1", figures))
        console.print(promises_table(BUDGETS))
    text = shown.get()
    assert "\x1b[3" not in text
    plain = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert max(map(len, plain.splitlines())) <= width
    assert "40.6M" in plain


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_its_shell_takes(shell: str, tmp_path: Path) -> None:
    result = call("completion", shell)
    assert result.exit_code == 0
    assert f"_COMPRESSOR_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} to read it")
    script = tmp_path / "script"
    script.write_text(result.stdout)
    subprocess.run([shell, "-n", str(script)], check=True)


def complete(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    program = "import sys; from cli.main import main; main(prog_name='compressor')"
    offered = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "_COMPRESSOR_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT),
             "COMP_WORDS": " ".join(("compressor", *words)), "COMP_CWORD": str(len(words))},
    ).stdout  # fmt: skip
    return [line.partition(",")[2] for line in offered.splitlines()]


def test_commands_options_and_values_are_completed() -> None:
    assert complete("com") == ["compress", "compress-multitask", "compare", "completion"]
    assert complete("compress", "--rank") == ["--ranking"]
    assert complete("compress", "net.py", "--ranking", "t") == ["taylor"]
    assert "--quiet" in complete("measure", "--q")
    assert complete("compress-multitask", "--j") == ["--joint", "--json"]
    assert complete("compress-multitask", "net.py", "--per", "") == ["encoder", "all"]
    assert complete("completion", "") == ["bash", "zsh", "fish"]


def test_neither_help_nor_completion_waits_for_torch() -> None:
    names = (
        "inspect", "compress", "export", "measure", "report", "compare", "completion",
        "compress_multitask",
    )  # fmt: skip
    program = "import sys, cli.main; "
    program += "".join(f"import cli.{name}_command; " for name in names)
    program += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_name_that_looks_like_markup_is_text_in_every_table() -> None:
    console = Console(width=200)
    rows = [BudgetRow("madds", "[red]x[/red]", 1, 1)]
    with console.capture() as shown:
        console.print(promises_table(rows))
    assert "[red]x[/red]" in shown.get()
