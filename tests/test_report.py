"""The report: one file, nothing from outside, and a layer's name is only ever text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import RunError
from compressor.report.charts import Axes, Point, profile, scatter, share_bar
from compressor.report.comparison import comparison
from compressor.report.page import render, write_report
from compressor.report.result import BudgetRow, Figures, LayerRow, ScoredRow
from compressor.report.words import sentence
from compressor.space import Choice, Frozen
from tests.test_result import make_summary

AXES = Axes("cost", "score", lambda v: f"{v:g}", lambda v: f"{v:g}")
VOID = {"meta", "path", "rect", "circle", "br"}
HOSTILE = '<script>alert(1)</script>"><img src=http://evil.example/x onerror=alert(1)>'


class Reader(HTMLParser):
    """Collects tags, attributes and text, and that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def test_says_what_happened(tmp_path: Path) -> None:
    path = write_report(make_summary(), tmp_path / "report.html")
    text = read(path.read_text()).text
    for said in ("40.6M", "20.2M", "49.8%", "1.51 ms", "0.9012", "-0.0161", "1.10 MB",
                 "madds=50%", "met", "the outputs of the network", "16 ch, k5", "8 ch, k3",
                 "compressor compress net.py", "seed", "torch", "features.2"):  # fmt: skip
        assert said in text


def test_names_the_score_where_the_run_does() -> None:
    plain = replace(make_summary(), settings={})
    named = replace(plain, settings={"score": "agreement"})
    text = read(render(named)).text
    assert "Score (agreement)" in text
    assert "(agreement)." in sentence(named)
    assert "Score (" not in read(render(plain)).text
    assert "(" not in sentence(plain)


def test_needs_nothing_from_outside() -> None:
    html = render(make_summary())
    reader = read(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in reader.attributes}
    assert "//" not in html.replace('http-equiv="', "")
    assert "url(" not in html
    assert "@import" not in html


def test_marks_the_pick_and_the_original() -> None:
    html = render(make_summary())
    assert html.count('class="pick"') == 1
    assert html.count('class="original"') == 1
    assert "<title>compressed: 20.2M, score 0.9012</title>" in html


def test_names_are_text() -> None:
    summary = make_summary()
    row = replace(summary.widths[0], name=HOSTILE)
    hostile = replace(
        summary,
        widths=(row,),
        frozen=(Frozen(HOSTILE, HOSTILE),),
        sliced=(Frozen(HOSTILE, HOSTILE),),
        unranked=(Frozen(HOSTILE, HOSTILE),),
        settings={"target": HOSTILE, HOSTILE: HOSTILE},
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        budgets=(BudgetRow("madds", HOSTILE, 1, 2),),
    )
    reader = read(render(hostile))
    assert not {"script", "img"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert HOSTILE in reader.text


def test_what_was_not_refitted_or_ranked_as_asked_is_listed() -> None:
    plain = read(render(make_summary())).text
    assert "What was cut without refitting" not in plain
    parts = {"sliced": (Frozen("up", "grouped"),), "unranked": (Frozen("stem", "no BatchNorm"),)}
    text = read(render(replace(make_summary(), **parts))).text
    for said in ("What was cut without refitting", "grouped", "by magnitude", "no BatchNorm"):
        assert said in text


def test_three_hundred_layers_stay_readable() -> None:
    html = render(make_summary(300))
    assert len(html) < 400_000
    assert "300 search layers" in read(html).text
    assert "<details>" in html  # closed: the charts above it say enough at a glance


def test_shows_where_the_time_goes() -> None:
    page = read(render(make_summary()))
    assert "Where the time goes" in page.text
    assert "compressed: 0.25 ms" in page.text
    without = read(render(replace(make_summary(), profiles={}))).text
    assert "This run holds no times of single operators" in without
    assert "compressor measure model.onnx --profile" in without


def test_a_run_that_measured_little_has_a_report() -> None:
    summary = replace(
        make_summary(0),
        base=Figures(100, 10),
        best=Figures(50, 5),
        scored=(ScoredRow(0, 1.0, None),),
        frontier=(),
        budgets=(),
        frozen=(),
        settings={},
        command="",
    )
    text = read(render(summary)).text
    assert "every part that can shrink was searched" in text
    assert "A Python program started this run" in text


@pytest.mark.parametrize("unit", ["madds", "params", "latency"])
def test_every_budget_unit_has_a_chart(unit: str) -> None:
    budget = BudgetRow(unit, f"{unit}=50%", 1e5, 2e5)
    summary = replace(make_summary(), budgets=(budget,))
    assert 'class="pick"' in render(summary)
    assert "missed" in read(render(summary)).text
    assert f"it misses {unit}=50%." in sentence(summary)


def test_a_kernel_alone_is_shown_as_text() -> None:
    row = LayerRow("conv", Choice(kernel=7), Choice(kernel=3))
    text = read(render(replace(make_summary(), widths=(row,)))).text
    assert "k7" in text
    assert "Channels along" not in text


def test_nothing_measured_is_a_dash() -> None:
    rows = {row.what: row for row in comparison(Figures(0, 1), Figures(0, 2))}
    assert rows["Score"].ratio == rows["ONNX file"].base == rows["MAdds"].ratio == "–"
    assert rows["Parameters"].ratio == "200.0%"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_report(make_summary(), tmp_path / "report.html")


values = st.floats(-1e12, 1e12)


@given(st.lists(st.tuples(values, values), max_size=8))
def test_any_points_stay_inside_the_chart(pairs: list[tuple[float, float]]) -> None:
    html = str(scatter([Point(x, y, "p") for x, y in pairs], AXES, pairs, 5.0))
    assert "nan" not in html
    for x, y in re.findall(r'cx="([^"]+)" cy="([^"]+)"', html):
        assert 0 <= float(x) <= 420
        assert 0 <= float(y) <= 260


@given(st.floats(-1, 2))
def test_shares_are_cut_to_the_bar(share: float) -> None:
    width = float(re.findall(r'kept" width="([^"]+)"', share_bar(share))[0])
    assert 0 <= width <= 100


def test_no_widths_no_chart() -> None:
    assert profile([], [], []) == ""
    assert scatter([], AXES) == ""
