"""The reports in a real browser: drawn without a complaint, at every width, light and dark.

The screenshots are left in the folder that COMPRESSOR_SCREENSHOTS names, else in pytest's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressor.report.compare_page import render_compared
from compressor.report.interactive import find_library
from compressor.report.page import render, render_overview
from compressor.report.result import DataRow, FrontierPoint, LayerRow, RunSummary, ScoredRow
from compressor.report.side_by_side import Run
from compressor.space import Choice, Frozen
from tests.browser import CHROMIUM, Page, browser
from tests.test_overview import make_overview
from tests.test_report import HOSTILE
from tests.test_result import make_summary

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the pages with"),
    pytest.mark.skipif(find_library() is None, reason="the package plotly is not installed"),
]
DRAWN = "document.documentElement.dataset.plots === 'drawn'"
DESKTOP, PHONE = 1280, 390


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("COMPRESSOR_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(shared: Page) -> Page:
    shared.complaints.clear()
    shared.requests.clear()
    return shared


def make_run(layers: int) -> RunSummary:
    """A plausible run: a frontier, many evaluations, kernels and channels, long names."""
    options = tuple(f"{8 * i} ch" for i in range(1, 9))
    widths = tuple(
        LayerRow(
            f"stages.{i // 12}.blocks.{i % 12}.attention.projection",
            Choice(64), Choice(8 * (i % 8 + 1)), (f"stages.{i}",), 1000 + i, options,
        )
        for i in range(layers)
    )  # fmt: skip
    scored = tuple(
        ScoredRow(i, 12e6 + 1e5 * (i * 37 % 150), 0.8 + (i * 53 % 97) / 970) for i in range(200)
    )
    frontier = tuple(
        FrontierPoint(tuple((i + k) % 8 for i in range(layers)), 10**7 + k * 10**6, 9 * 10**4,
                      0.81 + k * 0.009)
        for k in range(10)
    )  # fmt: skip
    data = (
        DataRow("calibration", 4, 512, ("3x32x32",), True, "ab" * 32),
        DataRow("validation", 16, 2000, ("3x32x32",), True, "cd" * 32, "a part of the other"),
    )
    frozen = tuple(Frozen(f"stages.{i}.norm", "a LayerNorm averages over them") for i in range(40))
    return replace(
        make_summary(0), widths=widths, scored=scored, frontier=frontier, data=data, frozen=frozen,
        architecture=tuple(i % 8 for i in range(layers)), times=(0.25,) * len(scored),
        command="compressor compress 'my net.py' --budget madds=50% --out 'a run'",
    )  # fmt: skip


def sideways(page: Page) -> int:
    """Pixels that the page must be scrolled sideways to be seen; 0 where it fits."""
    scrolled = page.value("document.documentElement.scrollWidth - window.innerWidth")
    return max(0, int(scrolled))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("layers", [5, 300])
def test_a_report_is_drawn_and_fits(
    page: Page, folder: Path, tmp_path: Path, layers: int, width: int, dark: bool
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(make_run(layers), find_library()))
    page.open(path, width=width, dark=dark, ready=DRAWN)
    scheme = "dark" if dark else "light"
    page.picture(folder / f"report-{layers}-{width}-{scheme}.png")
    assert page.value("document.querySelectorAll('.plot.drawn .main-svg').length") >= 4
    assert sideways(page) == 0
    back = page.value("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert page.complaints == []
    assert page.requests == [path.resolve().as_uri()]


def test_a_click_shows_every_layer_of_an_architecture(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(make_run(300), find_library()))
    page.open(path, width=DESKTOP, ready=DRAWN)
    hover = page.value("document.getElementById('plot-frontier').data[1].hovertext[0]")
    assert "10M MAdds" in hover
    assert "more layers" in hover
    assert hover.count("<br>") < 20
    page.value(
        "(() => { const plot = document.getElementById('plot-frontier');"
        "plot.emit('plotly_click', {points: [{customdata: plot.data[1].customdata[0]}]}); })()"
    )
    rows = page.value(
        "Array.from(document.querySelectorAll('#picked tr'), (r) => r.innerText.trim())"
    )
    assert len(rows) == 300
    assert rows[3].split("\t") == ["stages.0.blocks.3.attention.projection", "32 ch", "of 64 ch"]
    assert page.complaints == []


def test_names_stay_text_in_a_browser(page: Page, tmp_path: Path) -> None:
    hostile = f"</script>{HOSTILE}{{{{x}}}}\u2028"
    run = make_run(5)
    rows = tuple(replace(row, name=hostile, options=(hostile,) * 8) for row in run.widths)
    run = replace(run, widths=rows, command=hostile, settings={hostile: hostile})
    path = tmp_path / "report.html"
    path.write_text(render(run, find_library()))
    page.open(path, width=DESKTOP, ready=DRAWN)
    page.value(
        "(() => { const plot = document.getElementById('plot-frontier');"
        "plot.emit('plotly_click', {points: [{customdata: plot.data[1].customdata[0]}]}); })()"
    )
    assert page.value("document.querySelectorAll('img').length") == 0
    assert page.value("document.querySelector('pre').innerText").startswith("</script><script>")
    assert page.complaints == []
    assert page.requests == [path.resolve().as_uri()]


@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_frontier_and_a_comparison_are_drawn(
    page: Page, folder: Path, tmp_path: Path, width: int
) -> None:
    runs = [Run(f"runs/{name}", make_run(12)) for name in ("first", "second", "third")]
    for name, html in (
        ("frontier", render_overview(make_overview(), find_library())),
        ("compare", render_compared(runs, find_library())),
    ):
        path = tmp_path / f"{name}.html"
        path.write_text(html)
        page.open(path, width=width, ready=DRAWN)
        page.picture(folder / f"{name}-{width}.png")
        assert sideways(page) == 0, name
    assert page.complaints == []


def test_a_script_that_came_with_the_data_would_not_run(page: Page, tmp_path: Path) -> None:
    """The page's policy holds even where something got through the escaping."""
    html = render(make_run(5), find_library())
    path = tmp_path / "report.html"
    path.write_text(html.replace("</main>", "<script>document.title = 'taken'</script></main>"))
    page.open(path, width=DESKTOP, ready=DRAWN)
    assert page.value("document.title") != "taken"
    assert any("Content Security Policy" in said for said in page.complaints)


def test_a_browser_that_cannot_unpack_shows_plain_charts_and_says_so(
    page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(make_run(5), find_library()))
    old = page.ask(
        "Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream"
    )
    try:
        page.open(path, width=DESKTOP, ready="!document.getElementById('plots-note').hidden")
    finally:
        page.ask("Page.removeScriptToEvaluateOnNewDocument", identifier=old["identifier"])
    assert "could not draw" in page.value("document.getElementById('plots-note').innerText")
    assert page.value("document.querySelectorAll('svg.chart').length") == 4
    assert page.complaints == []


def test_without_the_library_the_page_shows_plain_charts_and_says_so(
    page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(make_run(5)))
    page.open(path, width=PHONE, ready="true")
    assert page.value("document.querySelectorAll('svg.chart').length") == 4
    assert "pip install plotly" in page.value("document.body.innerText")
    assert sideways(page) == 0
    assert page.complaints == []
