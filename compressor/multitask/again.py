"""The ONNX files of a finished run for several tasks, written again from what the run left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.deploy import artefacts
from compressor.deploy.export import export_joint
from compressor.errors import UsageError
from compressor.multitask.graphs import require_one_encoder
from compressor.multitask.one_file import JOINT, joint_details
from compressor.multitask.task import Task, telling
from compressor.network.data import as_inputs
from compressor.progress import Event, Progress, silent
from compressor.report.multitask import MultitaskSummary
from compressor.run.again import export_again
from compressor.run.delivery import samples


def export_task_again(
    run: Path,
    tasks: Sequence[Task],
    name: str,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    int8: bool = False,
    progress: Progress = silent,
) -> Path:
    """Writes the ONNX file of one task again, verified like the first time.

    Args:
        run: the task's folder.
        tasks: of the run, as `checked_tasks` gives them.
        name: of the task.
        opset: ONNX operator set; torch's own default without.
        dynamic_batch: whether the file takes any batch size.
        int8: whether a quantised file is written as well, with ranges from calibration data.
        progress: told before and after each file.

    Raises:
        UsageError: there is no such task, or a quantised file is to have a static batch.
        CheckError: what was written does not compute the network.
        RunError: the folder belongs to another model.
    """
    found = {task.name: task for task in tasks}
    if name not in found:
        raise UsageError(
            f"the run is of the task {name!r}, but there are only {', '.join(map(repr, found))}; "
            "give the target that the run was started with"
        )
    task = found[name]
    with telling(task):
        return export_again(
            run, task.model, as_inputs(task.example), opset=opset, dynamic_batch=dynamic_batch,
            calibration=task.calibration, int8=int8, progress=progress,
        ).path  # fmt: skip


def export_tasks_again(
    run: Path,
    tasks: Sequence[Task],
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    int8: bool = False,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Writes the ONNX files of all tasks again, and the joint file where the run has one.

    Args:
        run: the run directory.
        tasks: of the run, as `checked_tasks` gives them.
        opset: ONNX operator set; torch's own default without.
        dynamic_batch: whether the files take any batch size.
        int8: whether quantised files of the tasks are written as well.
        progress: told before and after each file.

    Returns:
        The files, the joint one last.

    Raises:
        UsageError: a task of the run is missing, or a joint file is to have a static batch.
        CheckError: what was written does not compute the networks, or the encoders differ.
        RunError: the run is unfinished or belongs to other models.
    """
    summary = MultitaskSummary.read(run)
    if summary.joint is not None and not dynamic_batch:
        raise UsageError(
            "the joint file takes batches of any size, but a static batch was asked for; name one "
            f"task, for example {str(run / summary.tasks[0].name)!r}"
        )
    names = [row.name for row in summary.tasks]
    files = [
        export_task_again(
            run / name, tasks, name, opset=opset, dynamic_batch=dynamic_batch, int8=int8,
            progress=progress,
        )
        for name in names
    ]  # fmt: skip
    own = {task.name: task for task in tasks}
    made = dict(zip(names, files, strict=True))
    require_one_encoder({name: (made[name], own[name].heads) for name in names})
    if summary.joint is None:
        return tuple(files)
    progress(Event("export", 0, 1, "all networks in one file"))
    report = export_joint(
        {name: artefacts.load(run / name, own[name].model) for name in names},
        made,
        as_inputs(own[names[0]].example),
        run / JOINT,
        metadata=joint_details(
            summary.architecture, [row.requested for row in summary.budgets], names
        ),
        samples=[s for name in names for s in samples(own[name].calibration)],
    )
    progress(Event("export", 1, 1, "ONNX and torch agree on every output"))
    return (*files, report.path)
