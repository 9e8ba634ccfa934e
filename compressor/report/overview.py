"""What a frontier came to, as plain values in `frontier.json`. Knows no torch.

The file is documented in `docs/result.md`; `SCHEMA` grows whenever a key changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from compressor.budget import parse_budget
from compressor.report.record import Form, Record
from compressor.report.result import Figures, RunSummary, Setting

SCHEMA = 1
FILE_NAME = "frontier.json"


@dataclass(frozen=True)
class OverviewRow:
    """The network of one budget.

    Attributes:
        budget: the budget's text, for example `madds=90%`.
        folder: its folder in the run directory, with a `result.json` of its own.
        best: the network as exported.
        int8: the network quantised; None where that was not asked for.
    """

    budget: str
    folder: str
    best: Figures
    int8: Figures | None = None


@dataclass(frozen=True)
class Overview(Record):
    """Every network of a frontier; the content of `frontier.json`.

    Attributes:
        base: the original network.
        rows: the networks, those of the loosest budget first.
        evaluations: networks scored, without failed ones, for all budgets together.
        failed: networks that could not be scored.
        seconds: wall clock of the whole run.
        settings: what the run was asked for, besides the budgets.
        command: a shell line that repeats the run; empty where a program started it.
        schema: version of this form.
    """

    base: Figures
    rows: tuple[OverviewRow, ...]
    evaluations: int
    failed: int
    seconds: float
    settings: Mapping[str, Setting] = field(default_factory=dict)
    command: str = ""
    schema: int = SCHEMA
    form: ClassVar[Form] = Form(
        FILE_NAME, "a frontier", SCHEMA, "`compressor compress --frontier` writes it"
    )

    @classmethod
    def of(cls, delivered: Sequence[tuple[str, RunSummary]]) -> Overview:
        """Of folders with their summaries, the loosest budget first."""
        last = delivered[-1][1]
        rows = [
            OverviewRow(s.budgets[0].requested, folder, s.best, s.int8) for folder, s in delivered
        ]
        settings = {key: value for key, value in last.settings.items() if key != "budget"}
        return cls(
            base=last.base,
            rows=tuple(rows),
            evaluations=last.evaluations,
            failed=last.failed,
            seconds=last.seconds,
            settings=settings,
            command=last.command,
        )

    def check(self) -> None:
        """There are networks, with budgets, in folders of the run's."""
        super().check()
        for row in self.rows:
            parse_budget(row.budget)
        if not self.rows:
            raise ValueError("a frontier holds networks, but got none")

    def folders(self) -> Sequence[str]:
        """One for each network."""
        return [row.folder for row in self.rows]
