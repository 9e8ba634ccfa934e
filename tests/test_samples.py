"""Every sample runs as its first lines say, and what the README promises of it holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import compressor
from benchmarks.support import sample
from compressor.report.result import RunSummary
from compressor.score.judge import top1
from tests.test_cli import call

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
TWO_POINTS = 0.02


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
