"""What a run came to, in words and rows of text, for every form of the report. Knows no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.budget import format_cost
from compressor.report.comparison import score_text
from compressor.report.result import BudgetRow, DataRow, LayerRow, RunSummary, Setting

UNPROFILED = (
    "This run holds no times of single operators: ONNX Runtime's profiler runs where the command "
    "runs, and latency was measured elsewhere. Run `compressor measure model.onnx --profile` on "
    "that device, or the same command with `--device local`."
)
UNDESCRIBED = (
    "This run says nothing about its data: an earlier version wrote it. The same command in a new "
    "directory records it."
)


@dataclass(frozen=True)
class Facts:
    """A titled table of names and values."""

    title: str
    rows: tuple[tuple[str, str], ...]


def target_name(settings: Mapping[str, Setting]) -> str:
    """What was compressed, in a word."""
    return Path(str(settings.get("target") or "the network")).name


def score_of(summary: RunSummary) -> str:
    """The name of the score; empty where a run does not say."""
    return str(summary.settings.get("score") or "")


def sentence(summary: RunSummary) -> str:
    """The outcome in one plain sentence."""
    base, best = summary.base, summary.best
    madds, params = best.madds / max(base.madds, 1), best.params / max(base.params, 1)
    text = f"The compressed network needs {madds:.1%} of the original's multiply-adds "
    text += f"and {params:.1%} of its parameters"
    if base.latency_ms and best.latency_ms:
        text += f", takes {best.latency_ms:.3g} ms instead of {base.latency_ms:.3g} ms"
    if base.score is not None and best.score is not None:
        ours, theirs = score_text(best.score), score_text(base.score)
        text += f", and scores {ours} where the original scores {theirs}"
        text += f" ({score_of(summary)})" if score_of(summary) else ""
    int8 = summary.int8
    if int8 is not None and int8.score is not None and int8.latency_ms is not None:
        text += (
            f"; quantised, it takes {int8.latency_ms:.3g} ms and scores {score_text(int8.score)}"
        )
    missed = [b.requested for b in summary.budgets if not b.met]
    return text + (f"; it misses {' and '.join(missed)}." if missed else ".")


@dataclass(frozen=True)
class Promise:
    """One budget: what was promised, and what was counted or measured of the delivered file."""

    budget: str
    promised: str
    measured: str
    met: bool


def promises(rows: tuple[BudgetRow, ...]) -> tuple[Promise, ...]:
    """What was promised beside what came of it, for each budget."""
    return tuple(_promise(row) for row in rows)


def _promise(row: BudgetRow) -> Promise:
    promised = row.allowed if row.low is not None else f"at most {row.allowed}"
    measured = format_cost(row.unit, row.reached)
    if row.upper is not None:
        measured += f", 95 % below {format_cost(row.unit, row.upper)}"
    return Promise(row.requested, promised, measured, row.met)


def channels_kept(row: LayerRow) -> int | None:
    """Channels that stay of a layer, 0 of a dropped block; None where it decides none."""
    return 0 if row.chosen.kept is False else row.chosen.channels


def share_kept(row: LayerRow) -> float:
    """Share of the layer's weights per input that stays: channels by kernel area."""
    if row.chosen.kept is False:
        return 0.0
    share = 1.0
    if row.original.channels and row.chosen.channels is not None:
        share *= row.chosen.channels / row.original.channels
    if row.original.kernel and row.chosen.kernel is not None:
        share *= (row.chosen.kernel / row.original.kernel) ** 2
    return share


def data_text(row: DataRow) -> str:
    """Data in a sentence without its use: `512 inputs of 3x32x32 in 4 batches, with targets`."""
    inputs = "inputs" if row.inputs is None else f"{row.inputs:,} input{'s' * (row.inputs != 1)}"
    text = f"{inputs} of {' and '.join(row.shapes) or 'one number'}"
    if row.batches is not None:
        text += f" in {row.batches:,} batch{'es' * (row.batches != 1)}"
    text += ", with targets" if row.targets else ", without targets"
    return f"{text}; {row.note}" if row.note else text


def command_of(summary: RunSummary) -> str:
    """One shell line that repeats the run from anywhere; empty where a program started it."""
    return repeated(summary.command, summary.settings)


def repeated(command: str, settings: Mapping[str, Setting]) -> str:
    """The command, begun in the folder where it ran; empty where there is none."""
    folder = settings.get("folder")
    return f"cd {shlex.quote(str(folder))} && {command}" if command and folder else command


def facts(summary: RunSummary) -> Iterator[Facts]:
    """How the run was set up, on what, with what, and how long it took."""
    work = [
        ("evaluations", str(summary.evaluations)),
        ("failed", str(summary.failed)),
        *((stage, f"{seconds:.1f} s") for stage, seconds in summary.stages.items()),
        ("in all", f"{summary.seconds:.1f} s"),
    ]
    yield Facts("Work", tuple(work))
    yield Facts("Settings", tuple((k, setting_text(v)) for k, v in summary.settings.items()))
    yield Facts("Machine", tuple((k, str(v)) for k, v in summary.machine.items()))
    yield Facts("Versions", tuple(summary.versions.items()))


def setting_text(value: Setting) -> str:
    """A setting for people; a dash where there was none."""
    if value is None:
        return "–"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
