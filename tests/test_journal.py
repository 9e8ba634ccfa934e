from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor.errors import RunError
from compressor.search.journal import Journal
from compressor.search.outcome import Outcome

SETTINGS = {"model": "abc", "seed": 0, "budgets": ["madds=50%"]}
GOOD = Outcome(0.25, "", 1.5)
BAD = Outcome(None, "ValueError: no", 0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def _filled(path: Path, count: int = 30) -> None:
    with Journal.open(path, SETTINGS) as journal:
        for i in range(count):
            journal.record((i, 1, 2), GOOD if i % 3 else BAD, {"madds": 10.0 * i})
            journal.record_cost("latency", (i, 1, 2), i + 0.5)
        journal.put("base", {"score": 0.5})


def test_keeps_outcomes_costs_and_notes_across_openings(path: Path) -> None:
    with Journal.open(path, SETTINGS) as journal:
        journal.record((3, 0), GOOD, {"madds": 5})
        journal.record((1, 0), BAD, {})
        journal.record_cost("latency", (3, 0), 2)
        journal.put("base", [1, "a"])
        journal.put("base", [2, "b"])
    with Journal.open(str(path), dict(reversed(SETTINGS.items()))) as journal:
        assert list(journal.outcomes().items()) == [((3, 0), (GOOD,)), ((1, 0), (BAD,))]
        assert journal.outcome((1, 0)) == BAD
        assert journal.outcome((0, 0)) is None
        assert journal.cost("latency", (3, 0)) == 2.0
        assert journal.cost("latency", (1, 0)) is None
        assert journal.get("base") == [2, "b"]
        assert journal.get("settings") is None


def test_repeats_of_a_noisy_score_are_kept_in_order(path: Path) -> None:
    again = Outcome(0.25, "", 1.0, repeat=1)
    with Journal.open(path, SETTINGS) as journal:
        journal.record((1,), GOOD, {})
        journal.record((2,), BAD, {})
        journal.record((1,), again, {})
        with pytest.raises(RunError):
            journal.record((1,), again, {})
    with Journal.open(path, SETTINGS) as journal:
        assert journal.outcomes() == {(1,): (GOOD, again), (2,): (BAD,)}
        assert journal.outcome((1,)) == GOOD


def test_order_of_recording_survives(path: Path) -> None:
    order = [(i * 7 % 20,) for i in range(20)]
    with Journal.open(path, SETTINGS) as journal:
        for architecture in order:
            journal.record(architecture, GOOD, {})
    with Journal.open(path, SETTINGS) as journal:
        assert list(journal.outcomes()) == order


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "seed": 1}, ["seed was 0 and is now 1"]),
        ({"model": "abc", "seed": 0}, ["budgets", '["madds=50%"]', "not given"]),
        ({**SETTINGS, "extra": None, "model": "x"}, ["extra was not given", 'is now "x"']),
    ],
)
def test_other_settings_are_named_with_both_values(
    path: Path, settings: dict[str, object], words: list[str]
) -> None:
    _filled(path, 2)
    with pytest.raises(RunError, match="--out") as caught:
        Journal.open(path, settings)
    assert all(word in str(caught.value) for word in words)


def test_recording_a_network_twice_is_refused(path: Path) -> None:
    with Journal.open(path, SETTINGS) as journal:
        journal.record((1,), GOOD, {})
        with pytest.raises(RunError, match="UNIQUE"):
            journal.record((1,), BAD, {})
        assert journal.outcome((1,)) == GOOD


def test_refuses_what_is_not_a_database(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(RunError, match="another --out"):
        Journal.open(path, SETTINGS)
    assert path.read_bytes().startswith(b"not a")


def test_refuses_and_keeps_a_foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match="photos"):
        Journal.open(path, SETTINGS)
    assert path.read_bytes() == before


def test_refuses_foreign_tables_of_the_same_names(path: Path) -> None:
    connection = sqlite3.connect(path)
    for name in ("notes", "evaluations", "costs"):
        connection.execute(f"CREATE TABLE {name} (value TEXT)")
    connection.close()
    with pytest.raises(RunError, match="another program"):
        Journal.open(path, SETTINGS)


def test_refuses_a_table_that_contradicts_its_index(path: Path) -> None:
    _filled(path, 3)
    data = path.read_bytes()
    place = data.index(b"[1, 1, 2]")
    path.write_bytes(data[:place] + b"[7, 1, 2]" + data[place + 9 :])
    with pytest.raises(RunError, match="SQLite reports"):
        Journal.open(path, SETTINGS)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_refuses_a_truncated_file(path: Path, part: float) -> None:
    _filled(path, 300)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(RunError):
        Journal.open(path, SETTINGS)


@pytest.mark.parametrize("name", ["missing/journal.sqlite", "file/journal.sqlite", "."])
def test_refuses_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="permissions"):
        Journal.open(tmp_path / name, SETTINGS)


def test_reports_a_full_disk_and_keeps_what_was_recorded(path: Path) -> None:
    with Journal.open(path, SETTINGS) as journal:
        journal.record((1,), GOOD, {})
        journal._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(RunError, match="full"):
            journal.put("large", "x" * 100_000)
    with Journal.open(path, SETTINGS) as journal:
        assert journal.outcomes() == {(1,): (GOOD,)}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE evaluations SET architecture = 'x'",
        "UPDATE evaluations SET architecture = '[1.5]'",
        "UPDATE evaluations SET architecture = '{}'",
        "UPDATE evaluations SET architecture = '[-1]'",
        "UPDATE evaluations SET architecture = x'ff00'",
        "UPDATE evaluations SET score = 'high'",
        "UPDATE evaluations SET score = 9e999",
        "UPDATE evaluations SET score = NULL",
        "UPDATE evaluations SET reason = x'00'",
        "UPDATE evaluations SET reason = 'both a score and a reason'",
        "UPDATE evaluations SET seconds = 'long'",
        "UPDATE evaluations SET repeat = 'again'",
        "UPDATE evaluations SET repeat = 1",
        "UPDATE evaluations SET architecture = printf('%.*c', 100000, '[')",
        "UPDATE evaluations SET reason = CAST(x'ff' AS TEXT)",
    ],
)
def test_foreign_content_is_refused(path: Path, change: str) -> None:
    with Journal.open(path, SETTINGS) as journal:
        journal.record((1, 2), GOOD, {})
    connection = sqlite3.connect(path)
    connection.execute(change)
    connection.commit()
    connection.close()
    with Journal.open(path, SETTINGS) as journal, pytest.raises(RunError, match="another --out"):
        journal.outcomes()


def test_foreign_costs_and_notes_are_refused(path: Path) -> None:
    _filled(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE costs SET value = 'fast'")
    connection.execute("UPDATE notes SET value = '{' WHERE key != 'settings'")
    connection.commit()
    connection.close()
    with Journal.open(path, SETTINGS) as journal:
        with pytest.raises(RunError):
            journal.cost("latency", (0, 1, 2))
        with pytest.raises(RunError):
            journal.get("base")


@pytest.mark.parametrize("value", ["[]", "7"])
def test_broken_settings_are_refused(path: Path, value: str) -> None:
    _filled(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE notes SET value = ? WHERE key = 'settings'", (value,))
    connection.commit()
    connection.close()
    with pytest.raises(RunError, match="settings are missing"):
        Journal.open(path, SETTINGS)


def test_flipped_bits_are_read_or_refused(path: Path, tmp_path: Path) -> None:
    _filled(path)
    data = path.read_bytes()
    rng = random.Random(0)  # noqa: S311
    target = tmp_path / "flipped.sqlite"
    for trial in range(250):
        broken = bytearray(data)
        limit = 200 if trial % 2 else len(data)  # header and schema get their share
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(limit)] ^= 1 << rng.randrange(8)
        target.write_bytes(bytes(broken))
        try:
            with Journal.open(target, SETTINGS) as journal:
                outcomes = journal.outcomes()
                journal.cost("latency", (1, 1, 2))
                journal.get("base")
            assert all(isinstance(o, Outcome) for made in outcomes.values() for o in made)
        except RunError:
            pass
        for leftover in tmp_path.glob("flipped.sqlite-*"):
            leftover.unlink()


_WRITER = """
import sys
from compressor.search.journal import Journal
from compressor.search.outcome import Outcome
with Journal.open(sys.argv[1], {"seed": 0}) as journal:
    start = len(journal.outcomes())
    for i in range(start, start + 10**6):
        journal.record((i, i + 1), Outcome(i / 2, "", 0.0), {"madds": i})
"""


def test_a_killed_writer_leaves_whole_evaluations(path: Path) -> None:
    seen = 0
    for delay in (0.0, 0.01, 0.05, 0.12):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        if delay:  # however slow the disk is, the later ones are killed while they record
            _wait_for_growth(path, deadline)
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        with Journal.open(path, {"seed": 0}) as journal:
            outcomes = journal.outcomes()
        assert list(outcomes) == [(i, i + 1) for i in range(len(outcomes))]
        assert [o.score for (o,) in outcomes.values()] == [i / 2 for i in range(len(outcomes))]
        assert len(outcomes) >= seen
        seen = len(outcomes)
    assert seen > 0


def _wait_for_growth(path: Path, deadline: float) -> None:
    changed = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == changed and time.monotonic() < deadline:
        time.sleep(0.002)
