"""What a browser is given to draw: data that stays data, a policy, and words where it lacks."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import replace
from importlib import metadata

import pytest

from compressor.report import interactive
from compressor.report.interactive import MISSING, Library, find_library, make_script, safe_json
from compressor.report.page import render, render_overview
from compressor.report.plots import architecture_choices, figures_of
from compressor.report.result import BudgetRow, LayerRow, RunSummary
from compressor.space import Choice
from tests.test_overview import make_overview
from tests.test_report import HOSTILE, read
from tests.test_result import make_summary

LIBRARY = Library("eJw=", "sha256-abc=", "0")


def in_page(html: str, name: str) -> str:
    """The content of a script element by its id."""
    start = html.index(f'id="{name}">') + len(f'id="{name}">')
    return html[start : html.index("</script>", start)]


def with_options(layers: int) -> RunSummary:
    rows = tuple(
        LayerRow(f"l{i}", Choice(16), Choice(8), (), i, ("8 ch", "16 ch")) for i in range(layers)
    )
    return replace(make_summary(layers), widths=rows, architecture=(0,) * layers)


def test_the_packed_library_is_the_installed_one() -> None:
    library = find_library()
    if library is None:
        pytest.skip("the package plotly is not installed")
    script = zlib.decompress(base64.b64decode(library.packed))
    assert b"plotly.js" in script[:100]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert library.sha256 == f"sha256-{digest}"
    assert library.version == metadata.version("plotly")
    assert len(library.packed) < 0.5 * len(script)


def test_without_the_package_a_page_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(interactive.metadata, "distribution", missing)
    assert find_library.__wrapped__() is None
    for html in (render(make_summary(), None), render_overview(make_overview(), None)):
        assert "pip install plotly" in read(html).text
        assert "<script" not in html
    assert "compressor report" in MISSING


def test_figures_are_json_that_cannot_end_their_element() -> None:
    text = str(safe_json({"name": "</script><!--&\u2028'\""}))
    assert json.loads(text) == {"name": "</script><!--&\u2028'\""}
    assert not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError, match="JSON compliant"):
        safe_json({"x": float("nan")})


def test_hostile_names_stay_inside_the_figures() -> None:
    summary = with_options(3)
    rows = tuple(replace(row, name=HOSTILE, options=(HOSTILE,) * 2) for row in summary.widths)
    html = render(replace(summary, widths=rows), LIBRARY)
    figures = json.loads(in_page(html, "figures"))
    assert figures["frontier"]["layers"][0][0] == HOSTILE  # shown as text by the page's script
    hover = figures["frontier"]["data"][1]["hovertext"][0]
    assert "<script" not in hover  # Plotly reads tags in hover texts
    assert "&lt;script" in hover
    reader = read(html)
    assert reader.tags.count("script") == 3
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_the_policy_names_both_scripts_and_nothing_else() -> None:
    html = render(with_options(3), LIBRARY)
    script = make_script({}, LIBRARY)
    own = base64.b64encode(hashlib.sha256(str(script.own).encode()).digest()).decode()
    policy = script.policy
    assert f"script-src 'sha256-{own}' 'sha256-abc='" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert script.own in html
    assert (policy in html) or (policy.replace("'", "&#39;") in html)


def test_hover_tells_the_architecture_and_of_many_layers_the_heaviest() -> None:
    few = figures_of(with_options(3))["frontier"]["data"][1]["hovertext"][0]
    assert "l0: 8 ch of 16 ch" in few
    many = with_options(300)
    lines = architecture_choices((0,) * 300, many.widths)
    assert lines[-1] == "and 288 more layers"
    assert lines[:-1] == [f"l{i}: 8 ch of 16 ch" for i in range(288, 300)]
    assert architecture_choices((1,) * 300, many.widths) == []


def test_an_architecture_of_another_run_is_told_by_numbers() -> None:
    rows = with_options(2).widths
    assert architecture_choices((7, -1), rows) == [
        "l0: option 7 of 16 ch",
        "l1: option -1 of 16 ch",
    ]


@pytest.mark.parametrize("unit", ["madds", "params", "latency"])
def test_every_budget_unit_has_figures(unit: str) -> None:
    budget = BudgetRow(unit, f"{unit}=50%", 1e5, 2e5, 1e4)
    figures = figures_of(replace(make_summary(), budgets=(budget,), times=(0.5, 0.5, 0.5, 0.5)))
    assert set(figures) == {"frontier", "search", "widths", "operators", "modules"}
    assert len(figures["frontier"]["layout"]["shapes"]) == 2  # both ends of the range
    assert "0.5 s" in figures["search"]["data"][-1]["hovertext"][0]


def test_a_run_that_measured_little_has_few_figures() -> None:
    empty = replace(make_summary(0), scored=(), frontier=(), profiles={})
    assert figures_of(empty) == {}
    assert read(render(empty, LIBRARY)).text
