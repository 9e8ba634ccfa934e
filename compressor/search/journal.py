"""The journal of a run: one SQLite transaction per evaluation. Knows no torch.

A run that is killed loses at most the evaluation in progress (`compressor.search.syncing` says what
a power cut costs); the next one replays the search with the journal as a warm cache. A journal may
come from anywhere, so its content is data: whatever is not what this module wrote is refused with a
`RunError`. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compressor.errors import RunError
from compressor.files import JOURNAL, SEVERAL
from compressor.search.journal_file import require_plain
from compressor.search.outcome import Outcome, by_network
from compressor.search.syncing import Syncing
from compressor.space import Architecture
from compressor.untrusted import parse_json

_TABLES: Mapping[str, str] = {
    "notes": "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "evaluations": (
        "CREATE TABLE evaluations (number INTEGER PRIMARY KEY, architecture TEXT NOT NULL, "
        "score REAL, reason TEXT NOT NULL, seconds REAL NOT NULL, costs TEXT NOT NULL, "
        "repeat INTEGER NOT NULL, UNIQUE (architecture, repeat))"
    ),
    "costs": (
        "CREATE TABLE costs (unit TEXT, architecture TEXT, value REAL NOT NULL, "
        "PRIMARY KEY (unit, architecture)) WITHOUT ROWID"
    ),
}
_SETTINGS = "settings"
_PATIENCE = 10.0  # seconds for another process to finish what it writes
_NOTE = "note:"  # keeps the caller's keys apart from the settings


class Journal:
    """Evaluations, measured costs and small notes of one run; use it in a `with` statement.

    Every method raises `RunError` where the file cannot be read, is not a journal, or cannot be
    written (no permission, no space left).
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._syncing = Syncing(self._rows)

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any]) -> Journal:
        """Creates the journal, or resumes it.

        Args:
            path: the file, usually `journal.sqlite` in the run directory.
            settings: JSON values that decide what an evaluation means (hash of the model,
                budgets, seed); kept with the journal.

        Raises:
            RunError: the file is not a journal, was started with other settings, or cannot be
                read or written.
        """
        return cls._opened(Path(path), json.loads(json.dumps(dict(settings), allow_nan=False)))

    @classmethod
    def read(cls, path: str | Path) -> Journal:
        """Opens the journal of a run, whatever its settings are.

        Raises:
            RunError: there is no such file, or it is not a journal.
        """
        if not Path(path).is_file():
            raise RunError(
                f"a run that was started holds {JOURNAL}, but there is no {str(path)!r}; give "
                f"{_whole_run(Path(path)) or 'the directory of a run'}"
            )
        return cls._opened(Path(path), None)

    @classmethod
    def _opened(cls, path: Path, settings: dict[str, Any] | None) -> Journal:
        require_plain(path)
        new = not path.exists()
        with _reported(path):
            # autocommit: each statement is one transaction
            connection = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE)
        journal = cls(connection, path)
        try:
            journal._prepare(settings)
        except BaseException:
            connection.close()
            if new:  # what could not be filled is no journal
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
            raise
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the journal cannot be used afterwards."""
        with suppress(RunError):  # what was written stays where it is, beside the file
            self._syncing.end()
        self._connection.close()

    def outcome(self, architecture: Architecture) -> Outcome | None:
        """The first recorded outcome of a network, or None."""
        rows = self._rows(
            "SELECT score, reason, seconds, repeat FROM evaluations "
            "WHERE architecture = ? ORDER BY repeat",
            (_key(architecture),),
        )
        return self._outcome(rows[0]) if rows else None

    def outcomes(self) -> dict[Architecture, tuple[Outcome, ...]]:
        """All outcomes: networks in the order of their first recording, repeats in order."""
        return by_network(self.evaluations())

    def evaluations(self) -> list[tuple[Architecture, Outcome]]:
        """All outcomes in the order of their recording."""
        rows = self._rows(
            "SELECT architecture, score, reason, seconds, repeat FROM evaluations ORDER BY number"
        )
        counts: Counter[Architecture] = Counter()
        found = []
        for row in rows:
            architecture, outcome = self._architecture(row[0]), self._outcome(row[1:])
            if outcome.repeat != counts[architecture]:
                raise self._broken(f"{architecture} has repeat {outcome.repeat} out of order")
            counts[architecture] += 1
            found.append((architecture, outcome))
        return found

    def record(
        self, architecture: Architecture, outcome: Outcome, costs: Mapping[str, float]
    ) -> None:
        """Keeps one evaluation; once this returns, a process that is killed does not lose it.

        Raises:
            RunError: this repeat of the network is recorded already, or the file cannot be written.
        """
        self._keep(
            "INSERT INTO evaluations (architecture, score, reason, seconds, costs, repeat) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                _key(architecture),
                outcome.score,
                outcome.reason,
                outcome.seconds,
                json.dumps(dict(costs)),
                outcome.repeat,
            ),
        )

    def cost(self, unit: str, architecture: Architecture) -> float | None:
        """A measured cost in the unit's base, or None where it was not measured yet."""
        rows = self._rows(
            "SELECT value FROM costs WHERE unit = ? AND architecture = ?",
            (unit, _key(architecture)),
        )
        return self._number(rows[0][0]) if rows else None

    def record_cost(self, unit: str, architecture: Architecture, value: float) -> None:
        """Keeps a measured cost, so that a resumed run sees the same noise."""
        self._keep(
            "INSERT OR REPLACE INTO costs VALUES (?, ?, ?)", (unit, _key(architecture), value)
        )

    def measured(self) -> bool:
        """Whether it keeps any measured cost."""
        return bool(self._rows("SELECT 1 FROM costs LIMIT 1"))

    def get(self, key: str) -> Any | None:
        """The JSON value noted under `key`, or None."""
        return self._note(_NOTE + key)

    def put(self, key: str, value: Any) -> None:
        """Notes a JSON value under `key`, in place of an earlier one."""
        self._keep("INSERT OR REPLACE INTO notes VALUES (?, ?)", (_NOTE + key, json.dumps(value)))

    def _prepare(self, settings: dict[str, Any] | None) -> None:
        self._write("PRAGMA trusted_schema = OFF")
        self._write("PRAGMA synchronous = FULL")
        found = self._tables()
        if not found and settings is not None:
            self._create(settings)
        elif found != _TABLES:
            raise self._broken(f"it has the tables of another program: {', '.join(sorted(found))}")
        elif (check := self._rows("PRAGMA integrity_check(1)")) != [("ok",)]:
            raise self._broken(f"SQLite reports: {check[0][0] if check else 'nothing'}")
        elif settings is not None:
            self._compare(settings)
        if settings is not None:
            self._syncing.begin()

    def _tables(self) -> dict[str, str]:
        # what SQLite makes by itself for a UNIQUE column has no text
        rows = self._rows("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {str(name): str(sql) for name, sql in rows}

    def _create(self, settings: dict[str, Any]) -> None:
        """One transaction: after a kill the file is either empty or complete."""
        self._write("BEGIN IMMEDIATE")
        for statement in _TABLES.values():
            self._write(statement)
        self._write("INSERT INTO notes VALUES (?, ?)", (_SETTINGS, json.dumps(settings)))
        self._write("COMMIT")

    def _compare(self, settings: dict[str, Any]) -> None:
        stored = self._note(_SETTINGS)
        if not isinstance(stored, dict):
            raise self._broken("its settings are missing")
        keys = [
            k for k in [*stored, *(set(settings) - set(stored))] if not _same(k, stored, settings)
        ]
        if keys:
            changes = "; ".join(
                f"{k} was {_shown(k, stored)} and is now {_shown(k, settings)}"
                for k in sorted(keys)
            )
            raise RunError(
                "a run is resumed with the settings that it was started with, but in "
                f"{str(self._path)!r} {changes}; give the earlier values, or another --out"
            )

    def _note(self, key: str) -> Any | None:
        rows = self._rows("SELECT value FROM notes WHERE key = ?", (key,))
        return self._json(rows[0][0]) if rows else None

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _reported(self._path):
            return self._connection.execute(statement, values).fetchall()

    def _write(self, statement: str, values: Sequence[Any] = ()) -> None:
        with _reported(self._path):
            self._connection.execute(statement, values)

    def _keep(self, statement: str, values: Sequence[Any]) -> None:
        self._write(statement, values)
        self._syncing.wrote()

    def _json(self, text: object) -> Any:
        with suppress(ValueError):
            if isinstance(text, str):
                return parse_json(text)
        raise self._broken(f"{text!r:.80} is not JSON")

    def _architecture(self, text: object) -> Architecture:
        options = self._json(text)
        if isinstance(options, list) and all(type(o) is int and o >= 0 for o in options):
            return tuple(options)
        raise self._broken(f"{text!r:.80} is not an architecture")

    def _number(self, value: object) -> float:
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise self._broken(f"{value!r:.80} is not a finite number")

    def _outcome(self, row: Sequence[Any]) -> Outcome:
        score, reason, seconds, repeat = row
        if not isinstance(reason, str) or (score is None) != bool(reason):
            raise self._broken(f"an evaluation has the score {score!r:.40}, reason {reason!r:.40}")
        if not isinstance(repeat, int) or repeat < 0:
            raise self._broken(f"an evaluation has the repeat {repeat!r:.40}")
        value = None if score is None else self._number(score)
        return Outcome(value, reason, self._number(seconds), repeat)

    def _broken(self, finding: str) -> RunError:
        return RunError(
            f"a run needs a whole journal, but {str(self._path)!r} is broken or foreign: "
            f"{finding}; give another run, or another --out"
        )


def _whole_run(path: Path) -> str:
    """The folder above that holds the journal of a run for several networks; empty for none."""
    for folder in path.absolute().parents[1:3]:
        if (folder / JOURNAL).is_file() and any((folder / name).is_file() for name in SEVERAL):
            return f"the run that this network is of, {str(folder)!r}"
    return ""


def _key(architecture: Architecture) -> str:
    return json.dumps([int(option) for option in architecture])


def _same(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    return key in old and key in new and bool(old[key] == new[key])


_SHOWN = 200  # characters of a setting that a message quotes


def _shown(key: str, settings: dict[str, Any]) -> str:
    if key not in settings:
        return "not given"
    text = json.dumps(settings[key])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turns what SQLite raises on foreign, broken, locked and full files into `RunError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise _unusable(path, error) from error
        raise RunError(
            f"one process at a time may use a journal, but {str(path)!r} is locked by another; "
            "wait until it is done, end it, or give another --out"
        ) from error
    except (
        sqlite3.Error,
        sqlite3.Warning,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: BaseException) -> RunError:
    return RunError(
        "a journal must be a readable and writable SQLite file of this program, but "
        f"{str(path)!r} gives: {error}; check space and permissions, or give another --out"
    )
