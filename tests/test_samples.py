"""Every sample runs as its first lines say, and what the README promises of it holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import compressor
from benchmarks.support import sample
from compressor.device.timing import Schedule
from compressor.report.multitask import MultitaskSummary
from compressor.report.result import RunSummary
from compressor.run import delivery
from compressor.score.judge import top1
from tests.test_cli import call

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
TWO_POINTS = 0.02
BRIEF = ("--finetune", "1", "--evaluations", "4")
ROUNDS = ("--finetune", "2", "--rounds", "2", "--transfer", "matching", "--evaluations", "4")


def demo_words() -> list[str]:
    """Arguments of the command in `make demo`, without its --out."""
    (line,) = re.findall(r"compressor (compress .*) --out runs/demo$", _makefile(), re.MULTILINE)
    return shlex.split(str(line))


def _makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    command, target, *options = demo_words()
    assert target == "samples/digits.py"
    assert options[:2] == ["--budget", "madds=40%"]
    result = call(command, ROOT / target, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Compressed" in result.stdout

    summary = RunSummary.read(tmp_path / "run")
    assert 0.97 * 0.4 <= summary.best.madds / summary.base.madds <= 0.4
    assert summary.base.score is not None
    assert summary.best.score is not None
    assert summary.best.score >= summary.base.score - TWO_POINTS

    digits = sample("digits")
    original = digits.build_model()
    small = compressor.load(tmp_path / "run", digits.build_model())
    before, after = top1(original, digits.test_data()), top1(small, digits.test_data())
    assert before >= 0.97
    assert after >= before - TWO_POINTS


def test_three_tasks_get_one_encoder_and_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer evaluations and epochs than the first lines of the sample say."""
    (line,) = re.findall(
        r"^    compressor (compress-multitask .*) --out DIR$",
        (SAMPLES / "digits_tasks.py").read_text(),
        re.MULTILINE,
    )
    monkeypatch.setattr(delivery, "_FINAL", Schedule(rounds=6, seconds=0.1))
    command, target, *options = shlex.split(line)
    options = options[: options.index("--finetune")]
    result = call(command, ROOT / target, *options, *ROUNDS, "--joint", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "above-four" in result.stdout
    assert "joint.onnx" in result.stdout
    assert "met" in result.stdout

    summary = MultitaskSummary.read(tmp_path / "run")
    assert [row.name for row in summary.tasks] == ["digit", "odd", "above-four"]
    assert summary.command.startswith("compressor compress-multitask ")
    assert summary.learning is not None
    assert summary.learning.epochs == (1, 1)
    assert summary.learning.transfer == "matching"
    assert 0 < summary.learning.transfer_seconds < summary.learning.seconds
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for told in (page, result.stdout):
        assert "2 rounds over the tasks, with transfer by matching" in told
    for row in summary.tasks:
        assert 0.9 * 0.4 <= row.best.madds / row.base.madds <= 0.41
        assert row.best.score is not None
        assert row.best.score > 0.9
        assert (tmp_path / "run" / row.name / "model.onnx").is_file()


def test_a_target_without_tasks_is_told(tmp_path: Path) -> None:
    given = ("--budget", "madds=40%", "--out", tmp_path / "run")
    result = call("compress-multitask", SAMPLES / "digits.py", *given)
    assert result.exit_code == 2
    assert "must define tasks()" in result.stderr
