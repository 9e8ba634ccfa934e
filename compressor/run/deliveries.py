"""The networks of a frontier, delivered one like the other: all of them or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from compressor.errors import RunError
from compressor.progress import Progress, silent
from compressor.report.overview import FILE_NAME, Overview
from compressor.report.page import FILE_NAME as REPORT
from compressor.report.page import write_overview
from compressor.report.result import RunSummary
from compressor.run.delivery import deliver
from compressor.run.request import Request, Stopwatch
from compressor.run.summary import Found

_UNFINISHED = ".unfinished"  # inside the run's folder, so that moving out of it is one step


def deliver_all(
    request: Request,
    found: Sequence[Found],
    folder: Path,
    watch: Stopwatch,
    progress: Progress = silent,
) -> list[tuple[Path, RunSummary]]:
    """Writes a folder for each budget of the frontier, and the table of them all.

    Each folder holds what a run with this budget alone would deliver. They are moved into place
    when all of them were checked; `frontier.json`, which makes the run complete, comes last.

    Returns:
        Folder and summary of each, in the order of `found`.

    Raises:
        CheckError: ONNX and torch disagree, or a measured latency is above its budget.
        ExportError: a network cannot be exported.
        RunError: the directory cannot be written.
    """
    delivered = []
    with placing(folder) as scratch:
        for each in found:
            own = each.budgets[0].budget
            budgets = tuple(resolved.budget for resolved in each.budgets)
            single = replace(request, budgets=budgets, frontier=())
            delivered.append(
                (own.folder, deliver(single, each, scratch / own.folder, watch, progress))
            )
        overview = Overview.of(delivered)
        (folder / FILE_NAME).unlink(missing_ok=True)
        place(scratch, folder, [name for name, _ in delivered])
        write_overview(overview, folder / REPORT)
        overview.write(folder)
    return [(folder / name, summary) for name, summary in delivered]


@contextmanager
def placing(folder: Path) -> Iterator[Path]:
    """A folder inside of a run's, for what is not checked yet; gone afterwards.

    Raises:
        RunError: something cannot be written or moved.
    """
    scratch = folder / _UNFINISHED
    try:
        _clear(scratch)  # of a run that was killed here
        yield scratch
    except OSError as error:
        raise RunError(
            f"{str(folder)!r} cannot be written: {error.strerror or error}; free some space or "
            "choose another directory"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def place(scratch: Path, folder: Path, names: Sequence[str]) -> None:
    """Moves finished folders into the run's, in place of earlier ones."""
    for name in names:
        _clear(folder / name)
        (scratch / name).rename(folder / name)


def _clear(folder: Path) -> None:
    """Removes a folder; of a link, which may lead out of the run, the link alone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
