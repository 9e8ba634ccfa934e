"""How often the journal waits for the disk: seldom while it runs, and always at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

from compressor.search.journal import Journal
from compressor.search.outcome import Outcome
from compressor.search.syncing import Syncing


class Disk:
    """A database that takes a while to reach the disk, and counts how often it had to."""

    def __init__(self, mode: str = "wal", takes: float = 0.02) -> None:
        self.mode, self.takes, self.now = mode, takes, 0.0
        self.asked: list[str] = []

    def ask(self, statement: str) -> list[tuple[str]]:
        self.asked.append(statement)
        if "checkpoint" in statement:
            self.now += self.takes
        return [(self.mode,)]


def test_waiting_takes_at_most_half_a_per_cent_of_the_time() -> None:
    disk = Disk()
    syncing = Syncing(disk.ask, lambda: disk.now)
    syncing.begin()
    for _ in range(1000):
        disk.now += 0.05
        syncing.wrote()
    waited = sum("checkpoint" in s for s in disk.asked)
    assert 10 <= waited <= 14  # 50 s, one wait of 20 ms in four of them
    assert "PRAGMA synchronous = NORMAL" in disk.asked


def test_a_quick_disk_is_waited_for_nearly_always() -> None:
    disk = Disk(takes=0.0001)
    syncing = Syncing(disk.ask, lambda: disk.now)
    syncing.begin()
    for _ in range(100):
        disk.now += 0.05
        syncing.wrote()
    assert sum("checkpoint" in s for s in disk.asked) == 100


def test_where_the_file_system_cannot_every_transaction_waits() -> None:
    disk = Disk(mode="delete")
    syncing = Syncing(disk.ask, lambda: disk.now)
    syncing.begin()
    syncing.wrote()
    syncing.end()
    assert disk.asked == ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"]


def test_a_closed_journal_is_one_plain_file_that_needs_no_writing_to_be_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "journal.sqlite"
    path.parent.mkdir()
    with Journal.open(path, {}) as journal:
        journal.record((1, 2), Outcome(0.5, "", 1.0), {})
        beside = {p.name for p in path.parent.iterdir()}
    assert beside == {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}
    assert [p.name for p in path.parent.iterdir()] == ["journal.sqlite"]
    assert path.read_bytes()[18:20] == b"\x01\x01"  # what SQLite calls a legacy file
    path.parent.chmod(0o500)
    try:
        with Journal.read(path) as journal:
            assert journal.outcome((1, 2)) == Outcome(0.5, "", 1.0)
    finally:
        path.parent.chmod(0o700)


def test_a_journal_can_be_read_while_a_run_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.open(path, {}) as journal:
        journal.record((1,), Outcome(0.5, "", 1.0), {})
        with Journal.read(path) as reader:
            assert len(reader.evaluations()) == 1
        journal.record((2,), Outcome(0.6, "", 1.0), {})
    with Journal.read(path) as reader:
        assert len(reader.evaluations()) == 2


def test_what_a_killed_run_left_beside_the_journal_belongs_to_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "journal.sqlite", tmp_path / "copy"
    copy.mkdir()
    with Journal.open(path, {}) as journal:
        journal.record((1,), Outcome(0.5, "", 1.0), {})
        for left in tmp_path.glob("journal.sqlite*"):
            shutil.copy(left, copy)  # what a kill would leave
    with Journal.open(copy / "journal.sqlite", {}) as again:
        assert again.outcome((1,)) == Outcome(0.5, "", 1.0)
    assert [p.name for p in copy.iterdir()] == ["journal.sqlite"]
