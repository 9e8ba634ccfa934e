"""Several runs side by side: what came of each, how they differ, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compressor.report.result import DataRow, Figures, RunSummary
from compressor.report.side_by_side import Run, groups, layer_rows, notes, read_runs
from tests.test_cli import call
from tests.test_overview import make_overview
from tests.test_report import HOSTILE, read
from tests.test_result import make_summary

Change = Callable[[RunSummary], RunSummary]


def make_runs(tmp_path: Path) -> list[Path]:
    first = replace(make_summary(), settings={"seed": 0, "score": "top1", "original_sha256": "a"})
    best = replace(first.best, score=0.88, madds=10_000_000)
    settings = {**first.settings, "seed": 1}
    int8 = Figures(1, 1, 0.87, 0.5)
    second = replace(first, best=best, int8=int8, settings=settings, seconds=12.0)
    first.write(tmp_path / "one")
    second.write(tmp_path / "two")
    return [tmp_path / "one", tmp_path / "two"]


def test_figures_stand_beside_each_other(tmp_path: Path) -> None:
    shown = call("compare", *make_runs(tmp_path)).stdout
    rows = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert ("20.2M (49.8%)" in rows["MAdds"], "10M (24.6%)" in rows["MAdds"]) == (True, True)
    assert ("0.9012 top1" in rows["Score"], "0.88 top1" in rows["Score"]) == (True, True)
    assert "0.5 ms (33.1%)" in rows["int8 latency"]
    assert rows["seed"].split() == ["seed", "0", "1"]
    assert "Note:" not in shown


def test_what_is_equal_is_not_repeated(tmp_path: Path) -> None:
    runs = read_runs(make_runs(tmp_path))
    found = {group.title: dict(group.rows) for group in groups(runs)}
    assert set(found) == {"", "Settings that differ"}
    assert set(found["Settings that differ"]) == {"seed"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: replace(s, settings={**s.settings, "original_sha256": "b"}), "networks differ"),
        (lambda s: replace(s, settings={**s.settings, "score": "loss"}), "different kinds"),
        (lambda s: replace(s, machine={**s.machine, "processor": "other"}), "different devices"),
        (lambda s: replace(s, data=(DataRow("validation", 1, 1, ("3",), True, "c"),)),
         "scored on different data"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_noted(tmp_path: Path, change: Change, said: str) -> None:
    one, two = make_runs(tmp_path)
    change(RunSummary.read(two)).write(two)
    assert said in call("compare", one, two).stdout
    assert any(said in note for note in notes(read_runs([one, two])))


def test_a_frontier_is_compared_network_by_network(tmp_path: Path) -> None:
    overview = make_overview()
    overview.write(tmp_path)
    for row in overview.rows:
        make_summary().write(tmp_path / row.folder)
    found = read_runs([tmp_path])
    assert [Path(run.name).name for run in found] == ["madds-90pct", "madds-50pct"]


def test_json_holds_the_figures_and_the_notes(tmp_path: Path) -> None:
    found = json.loads(call("compare", *make_runs(tmp_path), "--format", "json").stdout)
    assert [run["best"]["madds"] for run in found["runs"]] == [20_200_000, 10_000_000]
    assert found["runs"][0]["budgets"][0]["met"] is True
    assert found["notes"] == []


def test_pages_and_markdown(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    page = tmp_path / "deep" / "page.html"
    assert call("compare", *runs, "--format", "html", "-o", page).stdout.strip() == str(page)
    assert "20.2M (49.8%)" in read(page.read_text()).text
    text = call("compare", *runs, "--format", "md").stdout
    assert f"|  | {runs[0]} | {runs[1]} |" in text
    assert "| features.0 | 16 ch, k5 | 8 ch, k3 | 8 ch, k3 |" in text


def test_names_are_text_everywhere() -> None:
    summary = replace(make_summary(), settings={HOSTILE: HOSTILE, "target": HOSTILE})
    runs = [Run(HOSTILE, summary), Run(f"{HOSTILE}2", make_summary())]
    from compressor.report.compare_page import (  # noqa: PLC0415
        render_compared,
        render_compared_markdown,
    )

    reader = read(render_compared(runs))
    assert not {"script", "img"} & set(reader.tags)
    assert HOSTILE in reader.text
    assert "<script" not in render_compared_markdown(runs)


def test_networks_with_other_layers_have_no_table_of_layers() -> None:
    runs = [Run("a", make_summary(3)), Run("b", make_summary(4))]
    assert layer_rows(runs) == ()
    assert layer_rows(runs[:1] * 2)[0] == ("features.0", ("16 ch, k5", "8 ch, k3", "8 ch, k3"))


def test_a_narrow_terminal_gets_the_runs_below_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path)
    shown = call("compare", "one", "two").stdout
    assert max(map(len, shown.splitlines())) <= 40
    assert shown.count("Network") == 2
    assert "20.2M (49.8%)" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("one",), "at least two networks"),
        (("one", "one"), "each once"),
        (("one", "none"), "a finished run holds result.json"),
        (("one", "two", "-o", "x"), "--output is for --format html and md"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    make_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = call("compare", *words)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
