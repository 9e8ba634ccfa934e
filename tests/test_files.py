"""Files appear whole or not at all; a run that never started leaves no folder."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from compressor import files
from compressor.errors import DataError, RunError
from compressor.files import JOURNAL, run_folder, write_atomic, write_text


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b.txt", "größer")
    assert path.read_bytes() == "größer".encode()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_a_message(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"a\.bin' cannot be written: No space left on device; free"):
        write_atomic(tmp_path / "a.bin", write)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_files() -> None:
    with pytest.raises(RunError, match="cannot be written"):
        write_text(Path("/proc/nothing/a.txt"), "x")


# ---- the folder of a run


def fail_in(out: Path, fill: str = "") -> None:
    with run_folder(out) as folder:
        if fill:
            (folder / fill).write_text("x")
        raise DataError("the score raises")


def test_a_new_folder_goes_again_with_its_parents(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail_in(tmp_path / "runs" / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(DataError):
        fail_in(tmp_path / "runs" / "mine")
    assert (tmp_path / "runs" / "mine").is_dir()
    with pytest.raises(DataError):
        fail_in(tmp_path / "runs" / "other" / "deep")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["mine"]


def test_a_folder_with_a_journal_stays(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail_in(tmp_path / "run", JOURNAL)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [JOURNAL]
    with run_folder(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds other files; choose another"):
        fail_in(tmp_path)
    with pytest.raises(RunError, match="--out must be a directory"):
        fail_in(tmp_path / "thesis.tex")
    with pytest.raises(RunError, match="Not a directory; choose another --out"):
        fail_in(tmp_path / "thesis.tex" / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_names_that_no_file_system_takes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="File name too long"):
        fail_in(tmp_path / ("x" * 300))
    with pytest.raises(RunError, match="cannot be written"):
        fail_in(Path("/proc/nothing/run"))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(code, errno.errorcode[code])

    monkeypatch.setattr(files.tempfile, "TemporaryFile", fails)
    with pytest.raises(RunError, match=f"{errno.errorcode[code]}; choose another --out"):
        fail_in(tmp_path / "runs" / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fails)
    with pytest.raises(RunError, match="Permission denied"):
        fail_in(tmp_path)
