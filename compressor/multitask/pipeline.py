"""`compress_multitask`: one encoder architecture for several tasks, from networks to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compressor.budget import parse_goals
from compressor.errors import BudgetError, UsageError
from compressor.files import run_folder
from compressor.multitask.delivery import deliver_tasks
from compressor.multitask.finding import find_shared
from compressor.multitask.one_file import JOINT
from compressor.multitask.preparing import PER, prepare, shared_fingerprint
from compressor.multitask.task import Task, checked_tasks
from compressor.progress import Progress, silent
from compressor.report.multitask import MultitaskSummary
from compressor.report.result import RunSummary
from compressor.run.delivery import ONNX
from compressor.run.pipeline import opened_journal
from compressor.run.request import Options, Stopwatch

_UNITS = ("madds", "params")


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
    """

    tasks: tuple[TaskResult, ...]
    run: Path
    summary: MultitaskSummary
    joint_path: Path | None = None


def compress_multitask(  # noqa: PLR0913  (as compress: one call, and most have defaults)
    tasks: Sequence[Task],
    *,
    budget: str | Sequence[str],
    out: Path | str,
    per: str = "encoder",
    joint: bool = False,
    evaluations: int = 100,
    finetune: int = 0,
    seed: int = 0,
    adapter: str = "generic",
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    refit: bool = True,
    ranking: str = "reconstruction",
    keep: str = "best",
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
        budget: `"madds=50%"`, `"params=2M"`, a range, or several such texts; all hold together.
        out: run directory: `multitask.json`, `report.html`, and for each task a folder of its own
            as a run of `compress` leaves it.
        per: what the budget limits: one "encoder", or "all" networks together with their heads.
        joint: also write all networks as one ONNX file, `joint.onnx`, which reads the input once.
        evaluations: architectures to score at most, each on all tasks.
        finetune: epochs for each task's network, with its original as teacher.
        seed: of the search and of fine-tuning.
        adapter: registered name, or `package.module:Class`.
        threads: of ONNX Runtime, for the latency of what is delivered.
        provider: of ONNX Runtime.
        refit: refit the weights that read cut channels, by least squares on calibration data.
        ranking: which channels to keep first, told for each task and then put together.
        keep: which epoch of fine-tuning is kept: "best" by the validation loss, or "last".
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
    _require_exact(budget)
    options = Options(
        evaluations=evaluations, finetune=finetune, seed=seed, adapter=adapter, threads=threads,
        provider=provider, refit=refit, ranking=ranking, keep=keep, command=command,
        origin=dict(origin or {}),
    )  # fmt: skip
    watch = Stopwatch()
    given = checked_tasks(tasks)
    with run_folder(Path(out)) as folder:
        with watch.stage("read"):
            members = prepare(given, budget, options, progress)
        with opened_journal(folder, shared_fingerprint(members, per)) as journal:
            shared = find_shared(members, per, journal, watch, progress)
        summary, delivered = deliver_tasks(
            members, shared, per, folder, watch, progress, joint=joint
        )
    results = tuple(
        TaskResult(m.task.name, f.model, folder / m.task.name / ONNX, s)
        for m, f, s in zip(members, shared.found, delivered, strict=True)
    )
    return MultitaskResult(results, folder, summary, folder / JOINT if joint else None)


def _require_exact(budget: str | Sequence[str]) -> None:
    """Raises `BudgetError` unless every budget is one that is known without measuring."""
    for one in parse_goals(budget, None)[0]:
        if one.unit not in _UNITS:
            raise BudgetError(
                f"the encoder of several tasks is limited in {' or '.join(_UNITS)}, but got "
                f"{str(one)!r}; the latency of each task's file is measured when it is delivered"
            )
