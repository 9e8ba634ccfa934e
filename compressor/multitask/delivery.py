"""From the networks of several tasks to proved files: all tasks or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compressor.deploy.export import ExportReport
from compressor.multitask.finding import Shared
from compressor.multitask.graphs import require_one_encoder
from compressor.multitask.one_file import JOINT, deliver_joint
from compressor.multitask.preparing import Member
from compressor.multitask.rounds import Learnt, Rounds
from compressor.multitask.task import telling
from compressor.progress import Progress
from compressor.report.multitask import (
    FILE_NAME,
    LearningRow,
    MultitaskSummary,
    TaskRow,
    overview_of,
)
from compressor.report.overview import FILE_NAME as OVERVIEW
from compressor.report.page import FILE_NAME as REPORT
from compressor.report.page import write_multitask, write_overview
from compressor.report.result import BudgetRow, RunSummary
from compressor.run.deliveries import place, placing
from compressor.run.delivery import ONNX, deliver, export_original
from compressor.run.request import Stopwatch
from compressor.run.summary import budget_row


def deliver_tasks(
    members: Sequence[Member],
    shared: Shared,
    per: str,
    folder: Path,
    watch: Stopwatch,
    progress: Progress,
    *,
    joint: bool = False,
    originals: Mapping[str, ExportReport] | None = None,
) -> tuple[MultitaskSummary, tuple[RunSummary, ...]]:
    """Writes a folder for each task, and the summary of them all.

    Each folder holds what a run for this task alone would deliver. They are moved into place when
    all of them were checked and their encoders proved to be one graph, where asked for with one
    file of all networks; `multitask.json`, which makes the run complete, comes last. `originals`
    are the exported original networks, where they are known.

    Raises:
        CheckError: ONNX and torch disagree, or the encoders are not one graph.
        ExportError: a network cannot be exported.
        RunError: the directory cannot be written.
    """
    names = [m.task.name for m in members]
    with placing(folder) as scratch:
        scratch.mkdir(parents=True)
        originals = originals or _originals(members, scratch, watch, progress)
        delivered = []
        for m, name, found in zip(members, names, shared.found, strict=True):
            with telling(m.task):
                inner = scratch / name
                one = deliver(m.request, found, inner, watch, progress, originals[name])
                delivered.append(one)
        files = {name: scratch / name / ONNX for name in names}
        heads = {m.task.name: m.task.heads for m in members}
        nodes = require_one_encoder({name: (files[name], heads[name]) for name in names})
        made, promised = None, _slowest_rows(delivered)
        if joint:
            whole = [b for b in shared.budgets if per == "all" and b.budget.unit == "latency"]
            both = {name: report.path for name, report in originals.items()}, files
            made, rows = deliver_joint(members, shared, both, whole, scratch, watch, progress)
            promised |= {row.unit: row for row in rows}
        summary = _summary(members, shared, per, delivered, promised, nodes, watch)
        learning = _learning(shared.learnt, shared.rounds)
        summary = replace(summary, joint=made, learning=learning)
        (folder / FILE_NAME).unlink(missing_ok=True)
        (folder / JOINT).unlink(missing_ok=True)  # of an earlier run
        place(scratch, folder, [*names, *([JOINT] if joint else [])])
        write_multitask(summary, folder / REPORT)
        summary.write(folder)
    return summary, tuple(delivered)


def deliver_points(
    members: Sequence[Member],
    points: Sequence[Shared],
    per: str,
    folder: Path,
    watch: Stopwatch,
    progress: Progress,
    *,
    joint: bool = False,
) -> list[tuple[Path, MultitaskSummary, tuple[RunSummary, ...]]]:
    """Writes a folder for each budget of a frontier, and the table of them all.

    Each folder holds what a run for several tasks with this budget alone would deliver. They are
    moved into place when all of them were checked; `frontier.json`, which makes the run complete,
    comes last.

    Returns:
        Folder and summaries of each, in the order of `points`.

    Raises:
        CheckError: see `deliver_tasks`.
        ExportError: a network cannot be exported.
        RunError: the directory cannot be written.
    """
    made = []
    with placing(folder) as scratch:
        scratch.mkdir()
        originals = _originals(members, scratch, watch, progress)
        for shared in points:
            own = shared.budgets[0].budget.folder
            budgets = tuple(resolved.budget for resolved in shared.budgets)
            single = [
                replace(m, request=replace(m.request, budgets=budgets, frontier=()))
                for m in members
            ]
            inner = scratch / own
            done = deliver_tasks(
                single, shared, per, inner, watch, progress, joint=joint, originals=originals
            )
            made.append((own, *done))
        overview = overview_of([(own, summary) for own, summary, _ in made])
        (folder / OVERVIEW).unlink(missing_ok=True)
        place(scratch, folder, [own for own, *_ in made])
        write_overview(overview, folder / REPORT)
        overview.write(folder)
    return [(folder / own, summary, delivered) for own, summary, delivered in made]


def _learning(learnt: Learnt | None, how: Rounds) -> LearningRow | None:
    if learnt is None:
        return None
    transfer = how.transfer if how.transfers else "none"
    return LearningRow(
        learnt.epochs, transfer, how.weight, how.quantile, learnt.seconds, learnt.transfer_seconds
    )


def _originals(
    members: Sequence[Member], folder: Path, watch: Stopwatch, progress: Progress
) -> dict[str, ExportReport]:
    """The original networks as ONNX files in a folder, by task."""
    found = {}
    for m in members:
        with telling(m.task):
            path = folder / f"original-{m.task.name}.onnx"
            found[m.task.name] = export_original(m.request, path, watch, progress)
    return found


def _slowest_rows(delivered: Sequence[RunSummary]) -> dict[str, BudgetRow]:
    """Of what every task's file was promised, the row that came closest to its limit, by unit."""
    rows: dict[str, BudgetRow] = {}
    for row in (row for summary in delivered for row in summary.budgets):
        known = rows.get(row.unit)
        if known is None or row.reached / row.limit > known.reached / known.limit:
            rows[row.unit] = row
    return rows


def _summary(
    members: Sequence[Member],
    shared: Shared,
    per: str,
    delivered: Sequence[RunSummary],
    promised: Mapping[str, BudgetRow],
    nodes: int,
    watch: Stopwatch,
) -> MultitaskSummary:
    rows = [
        TaskRow(
            m.task.name, m.request.score_name, m.task.importance, summary.base, summary.best,
            m.base.loss, loss,
        )
        for m, summary, loss in zip(members, delivered, shared.losses, strict=True)
    ]  # fmt: skip
    architecture = shared.architecture
    first = delivered[0]
    apart = ("task", "score", "original_sha256")
    return MultitaskSummary(
        tasks=tuple(rows),
        per=per,
        budgets=tuple(
            promised.get(b.budget.unit) or budget_row(b, {b.budget.unit: b.cost(architecture)})
            for b in shared.budgets
        ),
        architecture=architecture,
        # what a layer can take away differs from head to head
        widths=tuple(replace(row, madds=None) for row in first.widths),
        encoder_nodes=nodes,
        evaluations=len(shared.search.scored),
        failed=len(shared.search.failed),
        seconds=watch.seconds,
        stages=dict(watch.stages),
        settings={k: v for k, v in first.settings.items() if k not in apart},
        command=first.command,
    )
