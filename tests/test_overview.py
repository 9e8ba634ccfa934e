"""The table of a frontier: a file that reads back, a report, a table for a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from cli.tables import frontier_table
from compressor.errors import RunError
from compressor.report.overview import Overview
from compressor.report.page import render_overview
from compressor.report.result import BudgetRow, Figures
from compressor.run import pipeline
from compressor.run.pipeline import Result
from tests.test_cli import GOOD, call
from tests.test_result import make_summary


def make_overview(target: str = "net.py") -> Overview:
    base = replace(make_summary(), settings={"score": "top1", "target": target})
    rows = []
    for share, score in ((90, 0.91), (50, 0.88)):
        figures = Figures(share * 406_000, share * 2700, score, None if share == 50 else 1.25)
        budget = BudgetRow("madds", f"madds={share}%", share * 406_000, share * 406_000)
        rows.append((f"madds-{share}pct", replace(base, best=figures, budgets=(budget,))))
    return Overview.of(rows)


def test_reads_back_as_written(tmp_path: Path) -> None:
    overview = make_overview()
    assert overview.write(tmp_path).name == "frontier.json"
    assert Overview.read(tmp_path) == overview
    assert [row.budget for row in overview.rows] == ["madds=90%", "madds=50%"]


def test_documented_keys_are_the_keys_of_the_file() -> None:
    text = (Path(__file__).parents[1] / "docs" / "result.md").read_text()
    data = make_overview().to_json()
    assert next(iter(data)) == "schema"
    for key in [*data, *data["rows"][0]]:
        assert f"`{key}`" in text.partition("## `frontier.json`")[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema=7), "schema 1 is needed, but got 7"),
        (lambda d: d.pop("base"), "base"),
        (lambda d: d.update(rows=[]), "holds networks"),
        (lambda d: d["rows"][0].update(folder="../other"), "lies in the run's"),
        (lambda d: d["rows"][0].update(folder=".."), "lies in the run's"),
        (lambda d: d["rows"][0].update(budget="many"), "UNIT=AMOUNT"),
    ],
)
def test_refuses_what_it_did_not_write(tmp_path: Path, change: Any, said: str) -> None:
    data = make_overview().to_json()
    change(data)
    (tmp_path / "frontier.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match=r"frontier\.json") as caught:
        Overview.read(tmp_path)
    assert said in str(caught.value)


def test_the_report_shows_every_network_and_links_to_its_own() -> None:
    html = render_overview(make_overview("<b>net</b>"))
    for said in ("36.54M (90.0%)", "Score (top1)", "1.25 ms", "0.88", "madds=50%", "<svg"):
        assert said in html
    assert 'href="madds-90pct/report.html"' in html
    assert "<b>" not in html


def test_the_terminal_shows_the_same() -> None:
    console = Console(width=140, record=True)
    console.print(frontier_table(make_overview()))
    lines = console.export_text().splitlines()
    assert [line.split()[0] for line in lines] == ["Budget", "original", "madds=90%", "madds=50%"]
    assert lines[-1].split()[-2:] == ["–", "madds-50pct"]


FRONTIER = "madds=90%,50%"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(GOOD)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the chain by one that leaves a finished frontier; holds what it was asked for."""
    seen: dict[str, Any] = {}

    def compress(model: nn.Module, example: object, *, out: Path, **options: Any) -> Result:
        seen.update(options)
        make_overview().write(out)
        summary = make_summary()
        point = Result(model, summary.frontier, out / "a" / "model.onnx", out / "a", summary)
        return replace(point, run=out, points=(point, point))

    monkeypatch.setattr(pipeline, "compress", compress)
    return seen


def test_a_frontier_from_the_shell(net: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("compress", net, "--frontier", FRONTIER, "--budget", "latency=4ms", "--out", out)
    done = call(*words)
    assert done.exit_code == 0, done.output
    assert (asked["frontier"], asked["budget"]) == (FRONTIER, ("latency=4ms",))
    assert f"--frontier {FRONTIER}" in asked["command"].replace("'", "")
    lines = done.stdout.splitlines()
    assert "madds-90pct" in done.stdout
    assert lines[-2:] == [str(out / "frontier.json"), str(out / "report.html")]
    found = json.loads(call(*words, "--json").stdout)
    assert found == {"run": str(out), **make_overview().to_json()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "at least one budget"),
        (("--frontier", "madds=90%"), "two different amounts"),
        (("--frontier", FRONTIER, "--budget", "madds=90%"), "drop the budget"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = call("compress", tmp_path / "missing.py", *words, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert said in done.stderr


def test_all_reports_are_written_again(tmp_path: Path) -> None:
    overview = make_overview()
    overview.write(tmp_path)
    for row in overview.rows:
        make_summary().write(tmp_path / row.folder)
    done = call("report", tmp_path)
    assert done.exit_code == 0, done.output
    places = [*(f"{row.folder}/report.html" for row in overview.rows), "report.html"]
    assert done.stdout.splitlines() == [str(tmp_path / place) for place in places]
    assert all((tmp_path / place).is_file() for place in places)
