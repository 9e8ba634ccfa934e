"""Every code block of README.md, docs/ and the other pages: run, or marked with the reason."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks import result_figure
from cli.main import main
from compressor.device.timing import Schedule
from compressor.errors import UsageError
from compressor.run import delivery
from tests import page_folders
from tests.pages import ROOT, Block, blocks, check, not_run, pages, run

LANGUAGES = {"python", "sh", "toml", "text"}
EVERY = [block for page in pages() for block in blocks(page)]
RUN = [page for page in pages() if any(not not_run(b) for b in blocks(page))]


@pytest.mark.parametrize("page", RUN)
def test_a_reader_can_run_the_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(delivery, "_FINAL", Schedule(rounds=10, seconds=0.3))
    before = set(sys.modules)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        names |= page_folders.prepare(page)
        for block in blocks(page):
            if not block.reason:
                run(block, names)
    finally:
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], tmp_path):
                del sys.modules[name]


def _lies_in(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and folder in Path(file).parents


def test_every_block_can_be_read_and_what_is_not_run_is_at_least_accepted() -> None:
    for block in EVERY:
        assert block.language in LANGUAGES, block.place
        try:
            check(block)
        except (AssertionError, SyntaxError, click.ClickException, UsageError) as error:
            raise AssertionError(f"{block.place}: {error!r}") from error


def test_the_blocks_that_are_not_run_are_listed_with_their_reasons(
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    listed = {b.place: "; ".join(sorted(not_run(b))) for b in EVERY if not_run(b)}
    for place, reason in listed.items():
        record_property(place, reason)
    if request.config.get_verbosity() > 0:
        with capsys.disabled():
            print("", *(f"{place}: {reason}" for place, reason in listed.items()), sep="\n")
    assert {b.page for b in EVERY if b.reason} == MARKED, "another page has blocks that are not run"


MARKED = {
    "docs/latency.md", "docs/multitask.md", "docs/targets.md", "docs/tutorial-raspberry-pi.md",
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "compressor compress net.py --budgets madds=50% --out runs/mine",
        "compressor compress net.py --score best --out runs/mine",
        "compressor squeeze net.py",
        "compressor inspect net.py other.py",
        "compressor compress net.py --budget watts=5 --out runs/mine",
        "compressor measure model.onnx --device telnet://pi",
        "make nothing-of-this-name",
        "pip install '.[nothing]'",
        "python -m benchmarks.zoo --no-such-option",
    ],
)
def test_a_command_that_is_not_there_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, click.ClickException, UsageError)):
        check(Block("page.md", 1, "sh", line + "\n", "not run"))


def test_a_command_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("compressor inspect nothing.py", "curl example.org"):
        with pytest.raises(AssertionError, match=r"page\.md:1"):
            run(Block("page.md", 1, "sh", line + "\n", ""), {})


def test_markers_files_and_indents_are_read() -> None:
    text = "<!-- not run: a Pi -->\n```sh\nls\n```\n- x\n\n  ```python\n  # a.py\n  b = 1\n  ```\n"
    shell, python = blocks("page.md", text)
    assert (shell.reason, shell.text, shell.line) == ("a Pi", "ls\n", 2)
    assert (python.file, python.text, python.reason) == ("a.py", "# a.py\nb = 1\n", "")


def test_the_first_picture_shows_the_rows_of_the_benchmarks() -> None:
    values = result_figure.accuracies(result_figure.TABLE.read_text(encoding="utf-8"))
    drawn = result_figure.PICTURE.read_text(encoding="utf-8")
    assert drawn == result_figure.picture(values), "run python -m benchmarks.result_figure"
    with pytest.raises(LookupError, match="original"):
        result_figure.accuracies("# Benchmarks")


def test_the_rows_of_the_comparison_are_rows_of_the_benchmarks() -> None:
    def rows(page: str) -> dict[str, set[str]]:
        lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
        cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines if x.startswith("| ")]
        return {row[0]: set(row[1:]) for row in cells if len(row) > 2}

    measured = rows("benchmarks.md")
    compared = rows("comparison.md")
    del compared["method"]
    assert len(compared) == 5
    for name, cells in compared.items():
        assert cells <= measured[name], name


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    found: dict[str, str] = runpy.run_path(str(ROOT / "docs" / "pages.py"))["generated"]()
    return found


def test_the_site_tells_every_command_with_its_options(made: dict[str, str]) -> None:
    for name in main.list_commands(click.Context(main)):
        assert f"## `compressor {name}`" in made["cli.md"]
    assert "--drop-blocks" in made["cli.md"]


def test_links_of_the_pages_from_the_root_lead_within_the_site(made: dict[str, str]) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", made["changelog.md"] + made["contributing.md"])
    assert links
    there = {path.name for path in (ROOT / "docs").glob("*.md")} | made.keys()
    assert set(links) <= there


def test_every_page_has_its_place_in_the_site(made: dict[str, str]) -> None:
    named = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")} | made.keys()
