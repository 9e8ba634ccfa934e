"""`MultitaskSummary`: what a run for several tasks came to, as plain values in `multitask.json`.

The file is documented in `docs/multitask.md`; `SCHEMA` grows whenever a key changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from compressor.report.comparison import (
    Compared,
    comparison,
    count_text,
    milliseconds_text,
    score_text,
)
from compressor.report.overview import Overview, OverviewRow
from compressor.report.record import Form, Record
from compressor.report.result import BudgetRow, Figures, LayerRow, Setting
from compressor.space import Architecture

SCHEMA = 1
FILE_NAME = "multitask.json"


@dataclass(frozen=True)
class TaskRow:
    """What became of one task.

    Attributes:
        name: of the task, and of its folder in the run directory, which has a `result.json`.
        score: name of its score.
        importance: weight of its normalised loss in the search.
        base: its original network.
        best: its network as exported.
        base_loss: validation loss of the original.
        loss: validation loss of the network as exported.
    """

    name: str
    score: str
    importance: float
    base: Figures
    best: Figures
    base_loss: float
    loss: float

    @property
    def ratio(self) -> float:
        """The loss as a multiple of the original's."""
        return self.loss / self.base_loss


@dataclass(frozen=True)
class JointFile:
    """All tasks' networks in one ONNX file, which reads the inputs once.

    Attributes:
        file: its name in the run directory.
        inputs: names of its inputs in order.
        outputs: for each task the names of its outputs in order.
        base: the original networks in such a file; scores are the tasks' own.
        best: the networks as exported.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[str, ...]]
    base: Figures
    best: Figures


@dataclass(frozen=True)
class LearningRow:
    """How the networks learnt after the search.

    Attributes:
        epochs: of each network, in each round over the tasks.
        transfer: what passed from one task's encoder to the next, a name of
            `compressor.names.TRANSFERS`.
        weight: of the transfer term beside a task's own loss.
        quantile: of matching, the share of pairs of inputs that counted as alike.
        seconds: wall clock of all training.
        transfer_seconds: of the transfer terms, as a part of it; of matching with its gradients,
            of features without them.
    """

    epochs: tuple[int, ...]
    transfer: str
    weight: float
    quantile: float
    seconds: float
    transfer_seconds: float


@dataclass(frozen=True)
class MultitaskSummary(Record):
    """One architecture for several tasks; the content of `multitask.json`.

    Attributes:
        tasks: in the order in which they were given.
        per: what the budgets limit: one "encoder", or "all" networks with their heads.
        budgets: promised and reached.
        architecture: one option for each shared search layer.
        widths: what each of these layers keeps.
        encoder_nodes: operators of the encoder, one graph in all ONNX files.
        evaluations: architectures scored, without failed ones.
        failed: architectures that could not be scored.
        seconds: wall clock of the whole run.
        stages: seconds of its parts.
        settings: what the run was asked for.
        command: a shell line that repeats the run; empty where a program started it.
        joint: the file with all networks; None where that was not asked for.
        learning: how the networks were fine-tuned; None where they were not.
        schema: version of this form.
    """

    tasks: tuple[TaskRow, ...]
    per: str
    budgets: tuple[BudgetRow, ...]
    architecture: Architecture
    widths: tuple[LayerRow, ...]
    encoder_nodes: int
    evaluations: int
    failed: int
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    command: str = ""
    joint: JointFile | None = None
    learning: LearningRow | None = None
    schema: int = SCHEMA
    form: ClassVar[Form] = Form(
        FILE_NAME,
        "a run for several tasks",
        SCHEMA,
        "`compressor compress-multitask` writes it",
    )

    @property
    def total(self) -> float:
        """Sum of importance × loss / original's loss: what the search makes small."""
        return sum(row.importance * row.ratio for row in self.tasks)

    def check(self) -> None:
        """There are tasks, in folders of the run's."""
        super().check()
        if not self.tasks:
            raise ValueError("a run for several tasks has tasks, but got none")

    def folders(self) -> Sequence[str]:
        """One for each task."""
        return [row.name for row in self.tasks]


def learning_text(row: LearningRow) -> str:
    """How the networks learnt, in a sentence or two."""
    rounds = len(row.epochs)
    text = (
        f"Each network was fine-tuned for {_counted(sum(row.epochs), 'epoch')} in "
        f"{_counted(rounds, 'round')} over the tasks"
    )
    if row.transfer == "none":
        return f"{text}, in {row.seconds:.0f} s; nothing passed from one to the next."
    how = f"transfer by {row.transfer}, weight {row.weight:g}"
    if row.transfer == "matching":
        how += f", quantile {row.quantile:g}"
    return (
        f"{text}, with {how}, in {row.seconds:.0f} s, of which transfer took "
        f"{row.transfer_seconds:.0f} s."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def task_table(summary: MultitaskSummary) -> Iterator[tuple[str, ...]]:
    """Titles, then each task before and after, as texts."""
    yield (
        "Task", "Score", "Original", "Compressed", "Loss / original's", "MAdds", "Parameters",
        "ONNX Runtime latency", "Original's latency",
    )  # fmt: skip
    for row in summary.tasks:
        base, best = row.base, row.best
        yield (
            row.name,
            row.score,
            score_text(base.score),
            score_text(best.score),
            f"{row.ratio:.3f}",
            f"{count_text(best.madds)} ({best.madds / max(base.madds, 1):.1%})",
            f"{count_text(best.params)} ({best.params / max(base.params, 1):.1%})",
            *(
                "–" if x.latency_ms is None else milliseconds_text(x.latency_ms)
                for x in (best, base)
            ),
        )


def joint_rows(summary: MultitaskSummary) -> tuple[Compared, ...]:
    """The joint file with the originals beside that with the compressed networks, if there is one.

    Without the last row of a comparison: such a file has no score of its own.
    """
    joint = summary.joint
    return () if joint is None else tuple(comparison(joint.base, joint.best))[:-1]


def overview_of(delivered: Sequence[tuple[str, MultitaskSummary]]) -> Overview:
    """The table of a frontier, of folders with their summaries, the loosest budget first.

    Costs are of all networks together, each with its head; the score is minus the sum of the
    tasks' normalised losses, weighted by their importances.
    """
    last = delivered[-1][1]
    settings = {key: value for key, value in last.settings.items() if key != "budget"}
    return Overview(
        base=_all_together(last, [t.base for t in last.tasks], original=True),
        rows=tuple(
            OverviewRow(s.budgets[0].requested, folder, _all_together(s, [t.best for t in s.tasks]))
            for folder, s in delivered
        ),
        evaluations=last.evaluations,
        failed=last.failed,
        seconds=last.seconds,
        settings={**settings, "score": "minus the sum of normalised losses"},
        command=last.command,
    )


def _all_together(
    summary: MultitaskSummary, parts: Sequence[Figures], *, original: bool = False
) -> Figures:
    """Of the joint file, where there is one, or else the sums of what the tasks' files have."""
    joint = summary.joint
    whole = (joint.base if original else joint.best) if joint else None
    score = -sum(t.importance for t in summary.tasks) if original else -summary.total
    if whole is not None:
        return replace(whole, score=score)
    latencies = [p.latency_ms for p in parts if p.latency_ms is not None]
    sizes = [p.file_bytes for p in parts if p.file_bytes is not None]
    return Figures(
        madds=sum(p.madds for p in parts),
        params=sum(p.params for p in parts),
        score=score,
        latency_ms=sum(latencies) if len(latencies) == len(parts) else None,
        file_bytes=sum(sizes) if len(sizes) == len(parts) else None,
    )
