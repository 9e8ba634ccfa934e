"""`compress_multitask`: one encoder architecture for several tasks, from networks to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.budget import parse_goals
from compressor.device.devices import parse_device
from compressor.device.job import Device
from compressor.device.local import LOCAL
from compressor.errors import UsageError
from compressor.files import run_folder
from compressor.multitask.delivery import deliver_points, deliver_tasks
from compressor.multitask.finding import Shared, find_shared
from compressor.multitask.one_file import JOINT
from compressor.multitask.preparing import PER, Member, prepare, shared_fingerprint
from compressor.multitask.rounds import Rounds
from compressor.multitask.task import Task, checked_tasks
from compressor.progress import Progress, silent
from compressor.report.multitask import MultitaskSummary
from compressor.report.result import RunSummary
from compressor.run.delivery import ONNX
from compressor.run.pipeline import opened_journal
from compressor.run.request import Options, Stopwatch


@dataclass(frozen=True)
class TaskResult:
    """What one task gets.

    Attributes:
        name: of the task.
        model: its compressed network, in evaluation mode.
        onnx_path: its verified ONNX file.
        summary: everything in its `result.json`.
    """

    name: str
    model: nn.Module
    onnx_path: Path
    summary: RunSummary


@dataclass(frozen=True)
class MultitaskResult:
    """What `compress_multitask` hands back.

    Attributes:
        tasks: in the order in which they were given.
        run: the run directory.
        summary: everything in `multitask.json`.
        joint_path: the verified ONNX file with all networks; None where it was not asked for.
        points: of a frontier, the result of each of its budgets, the loosest first; all else but
            `run` is then the loosest's.
    """

    tasks: tuple[TaskResult, ...]
    run: Path
    summary: MultitaskSummary
    joint_path: Path | None = None
    points: tuple[MultitaskResult, ...] = ()


def compress_multitask(  # noqa: PLR0913  (as compress: one call, and most have defaults)
    tasks: Sequence[Task],
    *,
    budget: str | Sequence[str] = (),
    frontier: str | Sequence[str] | None = None,
    out: Path | str,
    per: str = "encoder",
    joint: bool = False,
    evaluations: int = 100,
    finetune: int = 0,
    rounds: int = 1,
    transfer: str = "none",
    transfer_weight: float = 1.0,
    quantile: float = 0.25,
    seed: int = 0,
    adapter: str = "generic",
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    refit: bool = True,
    ranking: str = "reconstruction",
    keep: str = "best",
    device: str | Device = LOCAL,
    latency_folder: Path | str | None = None,
    command: str = "",
    origin: Mapping[str, str | None] | None = None,
    progress: Progress = silent,
) -> MultitaskResult:
    """Compresses the networks of several tasks to one encoder architecture.

    The search makes the sum of the tasks' validation losses small, each divided by the original
    network's loss on that task. Every task keeps weights and a head of its own; what is left of
    its weights is refitted, and fine-tuned where that is asked for, on its own data. The same call
    with the same `out` resumes an interrupted run without repeating an evaluation.

    Args:
        tasks: two or more; their encoders are built alike, their heads may differ.
        budget: `"madds=50%"`, `"params=2M"`, `"latency=60%"`, a range, or several such texts; all
            hold together. Needed unless there is a `frontier`.
        frontier: upper limits of one unit, `"madds=90%,80%,70%"`: one search, and for each of
            them all tasks' networks in a folder of its own. Together with `budget`, which all of
            them keep.
        out: run directory: `multitask.json`, `report.html`, and for each task a folder of its own
            as a run of `compress` leaves it; of a frontier, all that for each of its budgets.
        per: what the budget limits: one "encoder", or "all" networks together with their heads. A
            latency per encoder is kept by each task's file, that of all by the joint one.
        joint: also write all networks as one ONNX file, `joint.onnx`, which reads the input once.
        evaluations: architectures to score at most, each on all tasks.
        finetune: epochs for each task's network, with its original as teacher.
        rounds: over the tasks, among which these epochs are divided, earlier ones first.
        transfer: what passes from one task's encoder to the next while they learn: "none",
            "matching" (which inputs are alike) or "features" (its embedding of the inputs).
        transfer_weight: of the transfer term beside the task's own loss; 0 turns it off.
        quantile: of matching, the share of pairs of inputs that count as alike.
        seed: of the search and of fine-tuning.
        adapter: registered name, or `package.module:Class`.
        threads: of ONNX Runtime, for every latency.
        provider: of ONNX Runtime.
        refit: refit the weights that read cut channels, by least squares on calibration data.
        ranking: which channels to keep first, told for each task and then put together.
        keep: which epoch of fine-tuning is kept: "best" by the validation loss, or "last".
        device: where every latency is measured, as in `compressor.compress`.
        latency_folder: where the times of single operators are kept, as there.
        command: shell line that repeats the run, for the report.
        origin: where the tasks came from, for the report.
        progress: told after each step.

    Raises:
        UsageError: the request cannot be meant; nothing was written.
        AdapterError: the encoders differ; names the first difference.
        InfeasibleError: the budget is below what the encoder can be cut to.
        CheckError: ONNX and torch disagree, or the exported encoders are not one graph.
        CompressorError: see `compressor.errors`.
    """
    if per not in PER:
        raise UsageError(f"a budget is per {' or '.join(PER)}, but got {per!r}")
    _require_joint(budget, frontier, per, joint=joint)
    learning = Rounds(rounds, transfer, transfer_weight, quantile)
    learning.epochs(finetune)
    options = Options(
        evaluations=evaluations, finetune=finetune, seed=seed, adapter=adapter, threads=threads,
        provider=provider, refit=refit, ranking=ranking, keep=keep, command=command,
        origin=dict(origin or {}),
        device=parse_device(device) if isinstance(device, str) else device,
        latency_folder=None if latency_folder is None else Path(latency_folder),
    )  # fmt: skip
    watch = Stopwatch()
    given = checked_tasks(tasks)
    with run_folder(Path(out)) as folder:
        with watch.stage("read"):
            members = prepare(given, budget, options, progress, frontier)
        with opened_journal(folder, shared_fingerprint(members, per, learning)) as journal:
            found = find_shared(members, per, journal, watch, progress, learning)
        if frontier is None:
            made = deliver_tasks(members, found[0], per, folder, watch, progress, joint=joint)
            return _result(members, found[0], folder, made)
        delivered = deliver_points(members, found, per, folder, watch, progress, joint=joint)
    points = tuple(
        _result(members, shared, place, (summary, summaries))
        for shared, (place, summary, summaries) in zip(found, delivered, strict=True)
    )
    return replace(points[0], run=folder, points=points)


def _result(
    members: Sequence[Member],
    shared: Shared,
    folder: Path,
    made: tuple[MultitaskSummary, tuple[RunSummary, ...]],
) -> MultitaskResult:
    summary, delivered = made
    results = tuple(
        TaskResult(m.task.name, f.model, folder / m.task.name / ONNX, s)
        for m, f, s in zip(members, shared.found, delivered, strict=True)
    )
    joint = None if summary.joint is None else folder / JOINT
    return MultitaskResult(results, folder, summary, joint)


def _require_joint(budget: Any, frontier: Any, per: str, *, joint: bool) -> None:
    """Raises `UsageError` where a latency of all networks together has no file that keeps it."""
    units = {one.unit for goal in parse_goals(budget, frontier) for one in goal}
    if "latency" in units and per == "all" and not joint:
        raise UsageError(
            "the latency of all networks together is that of the file that holds them all, but "
            "none was asked for; add joint (--joint), or limit each task's file: per encoder"
        )
