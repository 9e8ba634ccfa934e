"""Several runs side by side, as texts: what came of each, and how they differ. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.errors import UsageError
from compressor.plain import encode
from compressor.report import words
from compressor.report.comparison import (
    bytes_text,
    change_text,
    count_text,
    milliseconds_text,
    score_text,
)
from compressor.report.multitask import FILE_NAME as MULTITASK
from compressor.report.multitask import MultitaskSummary
from compressor.report.overview import FILE_NAME as OVERVIEW
from compressor.report.overview import Overview
from compressor.report.result import Figures, RunSummary

_PRIVATE = ("original_sha256", "folder")  # told in words where they matter, or never
_WHERE = ("latency measured on", "latency device", "runtime threads", "provider")


@dataclass(frozen=True)
class Run:
    """A run, or one network of a run for several, under the name that was given."""

    name: str
    summary: RunSummary


@dataclass(frozen=True)
class Group:
    """A titled part of the table: labels, and a cell for each run."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Reads runs; each network of a frontier or of several tasks is one.

    Raises:
        UsageError: fewer than two networks, or one twice.
        RunError: a directory holds no finished run.
    """
    runs = tuple(run for folder in folders for run in _networks(folder))
    names = [run.name for run in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "comparing needs at least two networks, each once, but got "
            f"{', '.join(names) or 'none'}; give the directories of several runs, or of a frontier"
        )
    return runs


def _networks(folder: Path) -> Iterator[Run]:
    if (folder / OVERVIEW).is_file():
        for row in Overview.read(folder).rows:
            yield from _networks(folder / row.folder)
    elif (folder / MULTITASK).is_file():
        for task in MultitaskSummary.read(folder).tasks:
            yield Run(str(folder / task.name), RunSummary.read(folder / task.name))
    else:
        yield Run(str(folder), RunSummary.read(folder))


def groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """The table: what the runs came to, then every setting, version and machine that differs."""
    summaries = [run.summary for run in runs]
    found = [Group("", tuple(_results(summaries)))]
    for title, tables in (
        ("Settings that differ", [s.settings for s in summaries]),
        ("Machines", [s.machine for s in summaries]),
        ("Versions", [s.versions for s in summaries]),
        ("Data", [_data(s) for s in summaries]),
    ):  # fmt: skip
        rows = tuple(_differing(tables))
        if rows:
            found.append(Group(title, rows))
    return tuple(found)


def layer_rows(runs: Sequence[Run]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What each layer had, then what each run kept of it; empty for different networks."""
    first = runs[0].summary.widths
    if any([r.name for r in run.summary.widths] != [r.name for r in first] for run in runs):
        return ()
    return tuple(
        (row.name, (str(row.original), *(str(run.summary.widths[i].chosen) for run in runs)))
        for i, row in enumerate(first)
    )


def notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What must be known before the figures are held against each other."""
    summaries = [run.summary for run in runs]
    checks: tuple[tuple[Callable[[RunSummary], object], str], ...] = (
        (lambda s: s.settings.get("original_sha256"),
         "The original networks differ: ratios are each to its own original."),
        (words.score_of, "The scores are of different kinds: they cannot be compared."),
        (lambda s: [row.sha256 for row in s.data if row.use == "validation"],
         "The networks were scored on different data."),
        (lambda s: [s.machine.get(key) for key in (*_WHERE, *_processor(s))],
         "Latency was measured on different devices or settings: it cannot be compared."),
    )  # fmt: skip
    return tuple(
        text for read, text in checks if any(read(s) != read(summaries[0]) for s in summaries)
    )


def to_json(runs: Sequence[Run]) -> dict[str, Any]:
    """Figures and settings of each run, and the notes, as plain values."""
    keys = ("base", "best", "int8", "evaluations", "failed", "seconds", "settings", "machine",
            "versions", "data", "choices", "command")  # fmt: skip
    rows = [
        {
            "run": run.name,
            **{key: encode(getattr(run.summary, key)) for key in keys},
            "budgets": [{**encode(row), "met": row.met} for row in run.summary.budgets],
        }
        for run in runs
    ]
    return {"runs": rows, "notes": list(notes(runs))}


def _processor(summary: RunSummary) -> tuple[str, ...]:
    here = summary.machine.get("latency measured on", "local") == "local"
    return ("processor",) if here else ()


def _results(summaries: Sequence[RunSummary]) -> Iterator[tuple[str, tuple[str, ...]]]:
    def row(label: str, read: Callable[[RunSummary], str]) -> tuple[str, tuple[str, ...]]:
        return label, tuple(read(s) for s in summaries)

    yield row("Network", lambda s: words.target_name(s.settings))
    yield row("Promised", lambda s: "; ".join(p.budget for p in words.promises(s.budgets)) or "–")
    yield row("Kept", lambda s: "yes" if all(b.met for b in s.budgets) else "no")
    yield row("Score", lambda s: f"{score_text(s.best.score)} {words.score_of(s)}".strip())
    yield row("Original's score", lambda s: score_text(s.base.score))
    yield row("Change", lambda s: change_text(s.base, s.best))
    amounts: tuple[tuple[str, Callable[[Figures], float | None], Callable[[float], str]], ...] = (
        ("MAdds", lambda f: f.madds, count_text),
        ("Parameters", lambda f: f.params, count_text),
        ("ONNX file", lambda f: f.file_bytes, bytes_text),
        ("Latency", lambda f: f.latency_ms, milliseconds_text),
    )
    for label, read, show in amounts:
        yield label, tuple(_amount(read(s.base), read(s.best), show) for s in summaries)
    if any(s.int8 for s in summaries):
        yield row("int8 score", lambda s: score_text(s.int8.score) if s.int8 else "–")
        yield (
            "int8 latency",
            tuple(
                _amount(s.base.latency_ms, s.int8.latency_ms if s.int8 else None, milliseconds_text)
                for s in summaries
            ),
        )
    yield row("Evaluations", lambda s: f"{s.evaluations}" + f", {s.failed} failed" * bool(s.failed))
    yield row("Wall clock", lambda s: f"{s.seconds:.1f} s")


def _amount(old: float | None, new: float | None, show: Callable[[float], str]) -> str:
    if new is None:
        return "–"
    return f"{show(new)} ({new / old:.1%})" if old else show(new)


def _differing(
    tables: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key in dict.fromkeys(key for each in tables for key in each):
        values = [words.setting_text(each.get(key)) for each in tables]
        if key not in _PRIVATE and len(set(values)) > 1:
            yield key, tuple(values)


def _data(summary: RunSummary) -> dict[str, str]:
    """Use to what the data was, with the beginning of its hash."""
    told = {}
    for row in summary.data:
        text = words.data_text(replace(row, note=""))
        told[row.use] = f"{text} ({row.sha256[:8]})" if row.sha256 else text
    return told
