"""The report as Markdown: everything the page says, and names that stay text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.report.markdown import plain, render_markdown, render_overview_markdown, table
from compressor.report.result import DataRow
from compressor.space import Frozen
from tests.test_overview import make_overview
from tests.test_report import HOSTILE
from tests.test_result import make_summary


def test_says_what_the_page_says() -> None:
    data = (DataRow("calibration", 4, 512, ("3x32x32",), False, "ab" * 32, "a note"),)
    text = render_markdown(replace(make_summary(), data=data))
    for said in ("40.6M", "20.2M", "49.8%", "1.51 ms", "0.9012", "-0.0161", "at most 20.3M", "met",
                 "the outputs of the network", "8 ch, k3", "Conv 3x3", "512 inputs of 3x32x32",
                 "without targets; a note", "abab", "```sh\ncompressor compress net.py",
                 "| seed | 0 |", "| torch | 2.13 |", "at evaluation 2"):  # fmt: skip
        assert said in text, said


def test_what_is_not_known_is_told() -> None:
    text = render_markdown(replace(make_summary(0), profiles={}, frozen=(), command=""))
    assert "compressor measure model.onnx" in text
    assert "This run says nothing about its data" in text
    assert "every part that can shrink was searched" in text
    assert "A Python program started this run." in text


def test_the_command_starts_where_it_ran_and_is_quoted() -> None:
    settings = {"folder": "/my work/it's"}
    text = render_markdown(replace(make_summary(), settings=settings, command="compressor x"))
    assert "cd '/my work/it'\"'\"'s' && compressor x" in text


def test_a_command_with_fences_stays_in_its_fence() -> None:
    text = render_markdown(replace(make_summary(), command="compressor '````' x"))
    assert "`````sh\ncompressor '````' x\n`````" in text


def test_a_frontier_is_a_table() -> None:
    text = render_overview_markdown(make_overview("[net](http://evil)"))
    assert "| madds=90% | 0.91 |" in text
    assert "](http" not in text.replace("\\](", "")


def test_hostile_names_make_neither_tags_nor_columns() -> None:
    text = render_markdown(replace(make_summary(0), frozen=(Frozen(f"a|b{HOSTILE}\n# x", "y"),)))
    assert "<script" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "\n# x" not in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("score_epochs", "score_epochs"),
        ("_x_", "\\_x\\_"),
        ("a*b`c", "a\\*b\\`c"),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_only_what_would_be_read_is_escaped(text: str, said: str) -> None:
    assert plain(text) == said


@given(st.text(max_size=30))
def test_a_cell_is_one_line_of_one_column(text: str) -> None:
    lines = table(["a", "b"], [(text, "x")]).split("\n")
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3
