"""What a frontier came to, as plain values in `frontier.json`. Knows no torch.

The file is documented in `docs/result.md`; `SCHEMA` grows whenever a key changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.budget import parse_budget
from compressor.errors import BudgetError, RunError
from compressor.files import write_json
from compressor.plain import decode, encode
from compressor.report.reading import read_plain
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
class Overview:
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

    def to_json(self) -> dict[str, Any]:
        """Plain values, schema number first."""
        return {"schema": self.schema, **encode(self)}

    def write(self, run: Path) -> Path:
        """Writes `frontier.json` into the run directory: the whole file or nothing.

        Raises:
            RunError: the directory cannot be written.
        """
        return write_json(run / FILE_NAME, self.to_json())

    @classmethod
    def read(cls, run: Path) -> Overview:
        """Reads a run directory's `frontier.json`.

        Raises:
            RunError: the file is missing, broken or of another program.
        """
        path = run / FILE_NAME
        try:
            overview = cls.from_json(read_plain(path))
            _require_folders(run, overview)
        except (OSError, ValueError, BudgetError) as error:
            raise RunError(f"{str(path)!r} cannot be read: {error}") from error
        return overview

    @classmethod
    def from_json(cls, data: object) -> Overview:
        """Inverse of `to_json`; raises `ValueError` where `data` has another form."""
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise ValueError(f"a frontier of schema {SCHEMA} is needed, but got {found!r}")
        overview = decode(cls, data)
        for row in overview.rows:
            parse_budget(row.budget)
            if row.folder in ("", ".", "..") or Path(row.folder).name != row.folder:
                raise ValueError(f"a network's folder lies in the run's, but got {row.folder!r}")
        if not overview.rows:
            raise ValueError("a frontier holds networks, but got none")
        return overview


def _require_folders(run: Path, overview: Overview) -> None:
    """What is written for a network must not follow a link out of the run."""
    for row in overview.rows:
        if (run / row.folder).is_symlink():
            raise ValueError(f"a network's folder lies in the run, but {row.folder!r} is a link")
