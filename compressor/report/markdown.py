"""`report.md`: the report as Markdown, for a pull request or a wiki. Knows no torch.

Texts that come from a user's network are escaped: no name makes a table, a link or a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from compressor.budget import format_cost
from compressor.device.profile import Key, grouped
from compressor.report import words
from compressor.report.comparison import comparison, count_text, milliseconds_text, score_text
from compressor.report.multitask import MultitaskSummary, joint_rows, learning_text, task_table
from compressor.report.overview import Overview
from compressor.report.overview_table import overview_table
from compressor.report.plots import architecture_choices
from compressor.report.result import BudgetRow, RunSummary
from compressor.report.run_charts import best_so_far
from compressor.space import Frozen

FILE_NAME = "report.md"
_SPECIAL = re.compile(r"([\\`*\[\]|~])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])")
_NOTHING = "Nothing: every part that can shrink was searched."
_SHOWN = 6  # layers of a network of the frontier
_PLACES = 24  # modules of a profile


def render_markdown(summary: RunSummary) -> str:
    """The same as `report.html` says, as GitHub's Markdown, without pictures."""
    parts = [
        f"# {plain(words.target_name(summary.settings))}",
        plain(words.sentence(summary)),
        *_figures(summary),
        *_promises(summary.budgets),
        *_found(summary),
        *_times(summary),
        *_layers(summary),
        *_parts(
            "Kept as it was", summary.frozen, "Nothing: every part that can shrink was searched."
        ),
        *_parts("Cut without refitting", summary.sliced),
        *_parts("Ranked by magnitude", summary.unranked),
        *_data(summary),
        *repeat_parts(words.command_of(summary)),
        *_facts(summary),
    ]
    return "\n\n".join(parts) + "\n"


def render_overview_markdown(overview: Overview) -> str:
    """The table of a frontier as Markdown."""
    titles, *rows = overview_table(overview)
    parts = [
        f"# {plain(words.target_name(overview.settings))}",
        f"{len(overview.rows)} networks from one search of {overview.evaluations} evaluations. "
        "Each has a folder and a report of its own.",
        table(titles, rows),
        *repeat_parts(words.repeated(overview.command, overview.settings)),
    ]
    return "\n\n".join(parts) + "\n"


def render_multitask_markdown(summary: MultitaskSummary) -> str:
    """What came of several tasks, as Markdown."""
    titles, *rows = task_table(summary)
    parts = [
        f"# {plain(words.target_name(summary.settings))}",
        f"One encoder architecture for {len(summary.tasks)} tasks, found in {summary.evaluations} "
        "evaluations. Each task has a folder and a report of its own.",
        table(titles, rows),
        *([learning_text(summary.learning)] if summary.learning else []),
        *_promises(summary.budgets),
        *_joint(summary),
        "## The shared architecture",
        table(
            ["Layer", "Original", "Chosen"],
            [(row.name, row.original, row.chosen) for row in summary.widths],
        ),
        *repeat_parts(words.repeated(summary.command, summary.settings)),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """A text that Markdown shows as it is, in one line."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", line)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = False) -> str:
    """A table; with `numbers` all columns but the first stand right."""
    lines = [[plain(cell) for cell in line] for line in (titles, *rows)]
    lines.insert(1, ["---", *["---:" if numbers else "---"] * (len(titles) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def repeat_parts(command: str) -> Iterator[str]:
    """How to repeat a run; the fence is longer than any in the command."""
    yield "## How to repeat it"
    if not command:
        yield "A Python program started this run."
        return
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    yield f"{fence}sh\n{command}\n{fence}"


def _figures(summary: RunSummary) -> Iterator[str]:
    rows = comparison(summary.base, summary.best, words.score_of(summary), summary.int8)
    titles = ["", "Original", "Compressed", "Ratio", *(["int8", "Ratio"] if summary.int8 else [])]
    cells = [(r.what, r.base, r.best, r.ratio, r.int8, r.int8_ratio) for r in rows]
    yield table(titles, [row[: len(titles)] for row in cells], numbers=True)


def _joint(summary: MultitaskSummary) -> Iterator[str]:
    if summary.joint is not None:
        yield f"## All networks in {plain(summary.joint.file)}"
        rows = [(row.what, row.base, row.best, row.ratio) for row in joint_rows(summary)]
        yield table(["", "Original", "Compressed", "Ratio"], rows, numbers=True)


def _promises(budgets: tuple[BudgetRow, ...]) -> Iterator[str]:
    if budgets:
        yield "## Promised and measured"
        rows = words.promises(budgets)
        yield table(
            ["Budget", "Promised", "Measured", ""],
            [(r.budget, r.promised, r.measured, "met" if r.met else "missed") for r in rows],
        )


def _found(summary: RunSummary) -> Iterator[str]:
    if summary.frontier:
        yield "## The frontier"
        rows = []
        for point in summary.frontier:
            changed = architecture_choices(point.architecture, summary.widths, _SHOWN)
            latency = "–" if point.latency_ms is None else milliseconds_text(point.latency_ms)
            rows.append(
                (score_text(point.score), count_text(point.madds), count_text(point.params),
                 latency, ", ".join(changed) or "the original")
            )  # fmt: skip
        yield table(["Score", "MAdds", "Parameters", "Latency", "Architecture"], rows)
    line = best_so_far(summary)
    if line:
        yield "## The search"
        steps = [line[0], *(b for a, b in pairwise(line) if b[1] > a[1])]
        told = "; ".join(f"{score_text(score)} at evaluation {order:.0f}" for order, score in steps)
        yield f"Best score within the budget so far: {told}; {len(summary.scored)} evaluations."


def _times(summary: RunSummary) -> Iterator[str]:
    yield "## Where the time goes"
    if not summary.profiles:
        yield words.UNPROFILED
        return
    yield _profile(summary, "Operator", lambda node: node.kind, 10**9)
    yield _profile(summary, "Module", lambda node: node.place, _PLACES)


def _profile(summary: RunSummary, first: str, key: Key, most: int) -> str:
    profiles = summary.profiles
    rows: list[list[str]] = []
    for name, nodes in grouped(profiles, key, most):
        cells = [
            "–" if n is None else f"{format_cost('latency', n.ms)} ({p.share(n):.1%})"
            for n, p in zip(nodes, profiles.values(), strict=True)
        ]
        rows.append([name, *cells])
    rows.append(["in all", *(format_cost("latency", p.ms) for p in profiles.values())])
    return table([first, *profiles], rows, numbers=True)


def _layers(summary: RunSummary) -> Iterator[str]:
    if summary.widths:
        yield "## What each layer keeps"
        rows = [
            (r.name, r.original, r.chosen, f"{words.share_kept(r):.1%}") for r in summary.widths
        ]
        yield table(["Layer", "Original", "Kept", "Share of its weights"], rows, numbers=True)


def _parts(title: str, parts: Sequence[Frozen], otherwise: str = "") -> Iterator[str]:
    if parts or otherwise:
        yield f"## {title}"
        yield table(["Part", "Why"], [(p.name, p.reason) for p in parts]) if parts else otherwise


def _data(summary: RunSummary) -> Iterator[str]:
    yield "## The data"
    if not summary.data:
        yield words.UNDESCRIBED
        return
    rows = [(row.use, words.data_text(row), row.sha256 or "–") for row in summary.data]
    yield table(["Used for", "What", "SHA-256"], rows)


def _facts(summary: RunSummary) -> Iterator[str]:
    for facts in words.facts(summary):
        if facts.rows:
            yield f"## {facts.title}"
            yield table(["", ""], facts.rows)
