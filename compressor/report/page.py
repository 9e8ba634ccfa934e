"""`report.html`: what a run did, in one file that opens anywhere. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined

from compressor.device.profile import Profile, grouped
from compressor.files import write_text
from compressor.report import words
from compressor.report.charts import SERIES, share_bar
from compressor.report.comparison import comparison
from compressor.report.interactive import MISSING, Library, find_library, make_script
from compressor.report.multitask import MultitaskSummary, joint_rows, learning_text, task_table
from compressor.report.overview import Overview
from compressor.report.overview_table import overview_table
from compressor.report.plots import Figure, figures_of, overview_figures
from compressor.report.profile_chart import profile_chart
from compressor.report.result import RunSummary
from compressor.report.run_charts import (
    frontier_chart,
    overview_chart,
    search_chart,
    widths_chart,
)

FILE_NAME = "report.html"


def write_report(summary: RunSummary, path: Path) -> Path:
    """Writes the report as one self-contained HTML file: the whole file or nothing.

    Raises:
        RunError: the place cannot be written.
    """
    return write_text(path, render(summary, find_library()))


def render(summary: RunSummary, library: Library | None = None) -> str:
    """The report's HTML; needs no network and no other file to be read.

    Args:
        summary: what the run came to.
        library: draws the charts anew, so that they move; without, they are plain, and the page
            says how to get others.
    """
    # A picture has room for three profiles; a run makes no more.
    profiles = summary.profiles if len(summary.profiles) <= len(SERIES) else {}
    return fill(
        "report.html.j2",
        figures_of(summary),
        library,
        run=summary,
        name=words.target_name(summary.settings),
        sentence=words.sentence(summary),
        comparison=list(
            comparison(summary.base, summary.best, words.score_of(summary), summary.int8)
        ),
        promises=words.promises(summary.budgets),
        frontier=frontier_chart(summary),
        search=search_chart(summary),
        profile=widths_chart(summary.widths),
        widths=[(row, words.share_kept(row)) for row in summary.widths],
        share_bar=share_bar,
        times=profile_chart(profiles) if profiles else "",
        profiled=list(profiles),
        modules=list(module_rows(profiles)),
        unprofiled=words.UNPROFILED,
        data=[(row, words.data_text(row)) for row in summary.data],
        undescribed=words.UNDESCRIBED,
        command=words.command_of(summary),
        facts=list(words.facts(summary)),
    )


def write_overview(overview: Overview, path: Path) -> Path:
    """Writes the report of a frontier: its table, with links to the reports of its networks.

    Raises:
        RunError: the place cannot be written.
    """
    return write_text(path, render_overview(overview, find_library()))


def render_overview(overview: Overview, library: Library | None = None) -> str:
    """The HTML of a frontier's report; see `render`."""
    titles, *rows = overview_table(overview)
    links = [None, *(f"{quote(row.folder)}/{FILE_NAME}" for row in overview.rows)]
    return fill(
        "frontier.html.j2",
        overview_figures(overview),
        library,
        run=overview,
        name=words.target_name(overview.settings),
        titles=titles,
        rows=list(zip(links, rows, strict=True)),
        chart=overview_chart(overview),
        command=words.repeated(overview.command, overview.settings),
    )


def write_multitask(summary: MultitaskSummary, path: Path) -> Path:
    """Writes the report of several tasks: their table, with links to the report of each.

    Raises:
        RunError: the place cannot be written.
    """
    return write_text(path, render_multitask(summary))


def render_multitask(summary: MultitaskSummary) -> str:
    """The HTML of several tasks' report; it has no charts of its own."""
    titles, *rows = task_table(summary)
    links = [f"{quote(row.name)}/{FILE_NAME}" for row in summary.tasks]
    return fill(
        "multitask.html.j2",
        {},
        None,
        run=summary,
        name=words.target_name(summary.settings),
        titles=titles,
        rows=list(zip(links, rows, strict=True)),
        promises=words.promises(summary.budgets),
        joint=joint_rows(summary),
        learning=learning_text(summary.learning) if summary.learning else "",
        command=words.repeated(summary.command, summary.settings),
    )


def module_rows(profiles: Mapping[str, Profile]) -> Iterator[tuple[str, list[str]]]:
    """Every module with its milliseconds and share in each profile, the slowest first."""
    most = sum(len(profile.nodes) for profile in profiles.values())
    for place, nodes in grouped(profiles, lambda node: node.place, most) if profiles else ():
        cells: list[str] = []
        for node, profile in zip(nodes, profiles.values(), strict=True):
            if node is None:
                cells += ["–", "–"]
            else:
                cells += [f"{node.ms:.4g} ms", f"{profile.share(node):.1%}"]
        yield place, cells


def fill(
    template: str, figures: Mapping[str, Figure], library: Library | None, **values: Any
) -> str:
    """A page of a template, with figures drawn by the library where there is one."""
    folder = resources.files("compressor.report")
    loader = FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=loader,
    )  # fmt: skip
    script = None if library is None else make_script(dict(figures), library)
    return environment.get_template(template).render(values, script=script, missing=MISSING)
