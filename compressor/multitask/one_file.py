"""The networks of all tasks in one ONNX file, which reads the input once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from compressor.deploy.export import ExportReport, export_joint
from compressor.device.timing import Latency
from compressor.files import ALL_NETWORKS
from compressor.limits import ResolvedBudget
from compressor.multitask.finding import Shared
from compressor.multitask.preparing import Member
from compressor.progress import Event, Progress
from compressor.report.multitask import JointFile
from compressor.report.result import BudgetRow, Figures
from compressor.run.delivery import final_settings, require_budgets, samples, timed
from compressor.run.request import Stopwatch
from compressor.run.summary import budget_row
from compressor.space import Architecture
from compressor.versions import version_of

JOINT = ALL_NETWORKS

Files = Mapping[str, Path]


def deliver_joint(
    members: Sequence[Member],
    shared: Shared,
    files: tuple[Files, Files],
    budgets: Sequence[ResolvedBudget],
    folder: Path,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[JointFile, tuple[BudgetRow, ...]]:
    """Writes the compressed networks as one file, proved on every output, and measures it.

    It is timed in turns with the original networks in such a file.

    Args:
        members: the tasks.
        shared: their networks.
        files: verified ONNX files of the original networks, and of the compressed ones, by task.
        budgets: of latency, that this file must keep; what became of each is returned.
        folder: where it is written, under the name `JOINT`.
        watch: gets the time of each stage.
        progress: told before and after each file.

    Raises:
        CheckError: ONNX and torch disagree, or the measured latency is above a budget.
        ExportError: the graphs cannot be put together.
        DeviceError: the device on which it is measured fails.
    """
    architecture = shared.architecture
    with watch.stage("export"):
        progress(Event("export", 0, 2, "all originals in one file, to compare with"))
        networks = {m.task.name: m.request.model for m in members}
        original = _export(members, networks, files[0], folder / f"original-{JOINT}", {})
        progress(Event("export", 1, 2, "all networks in one file"))
        networks = {m.task.name: f.model for m, f in zip(members, shared.found, strict=True)}
        asked = [str(b.budget) for b in shared.budgets]
        details = joint_details(architecture, asked, list(networks))
        made = _export(members, networks, files[1], folder / JOINT, details)
        progress(Event("export", 2, 2, "ONNX and torch agree on every output"))
    request = members[0].request
    with watch.stage("measure"):
        latency = timed(
            {"original": original.path, "compressed": made.path},
            final_settings(request), request.options.device, progress,
            lambda found: all(row.met for row in _rows(budgets, found["compressed"])),
        )  # fmt: skip
    rows = _rows(budgets, latency["compressed"])
    require_budgets(rows, latency["compressed"])
    whole = members[0].reading.space.original
    joint = JointFile(
        file=JOINT,
        inputs=made.input_names,
        outputs={
            m.task.name: tuple(n for n in made.output_names if n.partition("/")[0] == m.task.name)
            for m in members
        },
        base=_figures(members, whole, original, latency["original"]),
        best=_figures(members, architecture, made, latency["compressed"]),
    )
    return joint, rows


def joint_details(
    architecture: Architecture, budgets: Sequence[str], tasks: Sequence[str]
) -> dict[str, str]:
    """Texts that are kept in the file."""
    return {
        "compressor.architecture": ",".join(map(str, architecture)),
        "compressor.budget": ", ".join(budgets),
        "compressor.tasks": ", ".join(tasks),
        "compressor.version": version_of("layernas-compressor"),
    }


def _rows(budgets: Sequence[ResolvedBudget], latency: Latency) -> tuple[BudgetRow, ...]:
    return tuple(budget_row(budget, {}, latency) for budget in budgets)


def _export(
    members: Sequence[Member],
    networks: Mapping[str, nn.Module],
    files: Files,
    path: Path,
    details: Mapping[str, str],
) -> ExportReport:
    """Compared on the first calibration batches of every task."""
    return export_joint(
        networks,
        files,
        members[0].request.example,
        path,
        metadata=details,
        samples=[s for m in members for s in samples(m.request.calibration)],
    )


def _figures(
    members: Sequence[Member], architecture: Architecture, made: ExportReport, latency: Latency
) -> Figures:
    return Figures(
        madds=sum(m.reading.madds(architecture) for m in members),
        params=sum(m.reading.params(architecture) for m in members),
        latency_ms=latency.median_ms,
        file_bytes=made.bytes,
    )
