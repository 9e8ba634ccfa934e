from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.test_trace import search


def _draw(run: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.trace_figure", str(run), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_figures_are_drawn_from_the_journal_and_reproduce(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `benchmarks` is not installed")
    search(tmp_path / "run")
    texts = []
    for turn in ("a", "b"):
        rows, evaluations = tmp_path / f"rows{turn}.svg", tmp_path / f"evaluations{turn}.svg"
        done = _draw(tmp_path / "run", "--rows", rows, "--evaluations", evaluations)
        assert done.returncode == 0, done.stderr
        assert ET.parse(rows).getroot().tag.endswith("svg")  # noqa: S314
        texts.append((rows.read_text(), evaluations.read_text()))
    assert texts[0] == texts[1]


def test_rows_need_a_guided_search(tmp_path: Path) -> None:
    search(tmp_path / "run", "published")
    done = _draw(tmp_path / "run", "--rows", tmp_path / "rows.svg")
    assert (done.returncode, "finished guided search" in done.stderr) == (2, True)
