"""From the networks of several tasks to proved files: all tasks or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compressor.multitask.finding import Shared
from compressor.multitask.graphs import require_one_encoder
from compressor.multitask.one_file import JOINT, deliver_joint
from compressor.multitask.preparing import Member
from compressor.progress import Progress
from compressor.report.multitask import FILE_NAME, MultitaskSummary, TaskRow
from compressor.report.page import FILE_NAME as REPORT
from compressor.report.page import write_multitask
from compressor.report.result import BudgetRow, RunSummary
from compressor.run.deliveries import place, placing
from compressor.run.delivery import ONNX, deliver
from compressor.run.request import Stopwatch


def deliver_tasks(
    members: Sequence[Member],
    shared: Shared,
    per: str,
    folder: Path,
    watch: Stopwatch,
    progress: Progress,
    *,
    joint: bool = False,
) -> tuple[MultitaskSummary, tuple[RunSummary, ...]]:
    """Writes a folder for each task, and the summary of them all.

    Each folder holds what a run for this task alone would deliver. They are moved into place when
    all of them were checked and their encoders proved to be one graph, where asked for with one
    file of all networks; `multitask.json`, which makes the run complete, comes last.

    Raises:
        CheckError: ONNX and torch disagree, or the encoders are not one graph.
        ExportError: a network cannot be exported.
        RunError: the directory cannot be written.
    """
    names = [m.task.name for m in members]
    with placing(folder) as scratch:
        scratch.mkdir()
        originals = {n: scratch / f"original-{n}.onnx" if joint else None for n in names}
        delivered = [
            deliver(m.request, found, scratch / name, watch, progress, originals[name])
            for m, name, found in zip(members, names, shared.found, strict=True)
        ]
        files = {name: scratch / name / ONNX for name in names}
        nodes = require_one_encoder(
            {m.task.name: (files[m.task.name], m.task.heads) for m in members}
        )
        summary = _summary(members, shared, per, delivered, nodes, watch)
        if joint:
            before = {name: path for name, path in originals.items() if path is not None}
            made = deliver_joint(members, shared, (before, files), scratch, watch, progress)
            summary = replace(summary, joint=made, seconds=watch.seconds, stages=dict(watch.stages))
        (folder / FILE_NAME).unlink(missing_ok=True)
        (folder / JOINT).unlink(missing_ok=True)  # of an earlier run
        place(scratch, folder, [*names, *([JOINT] if joint else [])])
        write_multitask(summary, folder / REPORT)
        summary.write(folder)
    return summary, tuple(delivered)


def _summary(
    members: Sequence[Member],
    shared: Shared,
    per: str,
    delivered: Sequence[RunSummary],
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
    architecture = shared.search.best.architecture
    first = delivered[0]
    apart = ("task", "score", "original_sha256")
    return MultitaskSummary(
        tasks=tuple(rows),
        per=per,
        budgets=tuple(
            BudgetRow(
                b.budget.unit, str(b.budget), float(b.high), float(b.cost(architecture)), b.low
            )
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
