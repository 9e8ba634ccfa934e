"""Shows how far a run is: a live display on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as Live
from rich.table import Column
from rich.text import Text

from cli import verbosity
from compressor.progress import Event, Progress, silent

_EVERY = 10.0  # seconds between plain lines of one stage
_MEMORY = 900.0  # seconds that the estimate looks back: one evaluation may take minutes
# Each takes milliseconds and Python's lock from the search, and time is told in seconds.
_REFRESHES = 1.0
_WIDE, _MIDDLE = 100, 60  # columns from which there is room for a long bar, and for any
_NAME = 12  # letters of a step's name where there is no room for a bar


@contextmanager
def watching(console: Console) -> Iterator[Progress]:
    """Gives a callable that shows events on the console until the block ends."""
    if not verbosity.says("info"):
        yield silent
        return
    if verbosity.level() == "debug":
        yield PlainLines(console, every=0.0, stamped=True)
        return
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainLines(console)
        return
    live = Live(
        *_columns(console.width),
        console=console,
        speed_estimate_period=_MEMORY,
        refresh_per_second=_REFRESHES,
        expand=console.width >= _MIDDLE,
        # what is printed meanwhile keeps its own stream: stdout may be read by a program
        redirect_stdout=False,
    )
    with live:
        yield _LiveBars(live)


def _columns(width: int) -> list[ProgressColumn]:
    """What a terminal of so many columns has room for: every line stays one line."""
    if width < _MIDDLE:
        return [_Cell(_cut_name), _Cell(_count), _Cell(_left_or_spent)]
    bar = BarColumn(bar_width=24 if width >= _WIDE else 8)
    note = _Cell(lambda task: str(task.fields["note"]), rest=True)
    return [_Cell(lambda task: task.description), bar, _Cell(_count), _Cell(_time), note]


class _Cell(ProgressColumn):
    """A text of a task, never markup; `rest` gets the room that the others leave, and is cut."""

    max_refresh = 0.2

    def __init__(self, read: Callable[[Task], str], *, rest: bool = False) -> None:
        super().__init__(
            Column(no_wrap=True, overflow="ellipsis", ratio=1) if rest else Column(no_wrap=True)
        )
        self._read = read

    def render(self, task: Task) -> Text:
        """The text now."""
        return Text(self._read(task))


def _cut_name(task: Task) -> str:
    name = task.description
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _count(task: Task) -> str:
    return "" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}"


def _time(task: Task) -> str:
    """For how long it has been going, and how long it will still take where that is known."""
    spent, left = _spent(task), _left(task)
    return f"{spent}, {left}" if left else spent


def _left_or_spent(task: Task) -> str:
    return _left(task) or _spent(task)


def _spent(task: Task) -> str:
    elapsed = task.finished_time if task.finished else task.elapsed
    return duration(elapsed or 0.0)


def _left(task: Task) -> str:
    seconds = task.fields["seconds"]
    if task.finished:
        return ""
    left = task.time_remaining if seconds is None else max(0.0, seconds - (task.elapsed or 0.0))
    return "" if left is None else f"{duration(left)} left"


@dataclass
class _LiveBars:
    """One bar for each stage."""

    live: Live
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        fields: dict[str, Any] = {"note": event.note, "seconds": event.seconds}
        if event.stage not in self.tasks:
            self._close()
            self.tasks[event.stage] = self.live.add_task(
                event.stage, total=event.total, completed=event.done, **fields
            )
            return
        task = self.tasks[event.stage]
        if event.done < self.live.tasks[self.live.task_ids.index(task)].completed:
            # the stage begins anew, for the next network of a frontier
            self.live.reset(task, total=event.total, completed=event.done, **fields)
        self.live.update(task, completed=event.done, total=event.total, **fields)

    def _close(self) -> None:
        """The next stage has begun, so the ones before are over, however far they counted."""
        for task in self.live.tasks:
            if not task.finished:
                self.live.update(
                    task.id, total=max(task.completed, 1), completed=max(task.completed, 1)
                )
                self.live.stop_task(task.id)


@dataclass
class PlainLines:
    """A line when a stage begins and ends, and one now and then between."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    every: float = _EVERY
    stamped: bool = False
    begun: dict[str, tuple[float, int]] = field(default_factory=dict)
    last: float = 0.0
    held: Event | None = None
    start: float | None = None
    said: str = ""

    def __call__(self, event: Event) -> None:
        """Prints a line, or holds it back while the last one is fresh enough."""
        now = self.clock()
        self.start = now if self.start is None else self.start
        new = event.stage not in self.begun or event.done < self.begun[event.stage][1]
        if new:
            if self.held is not None:
                self._print(self.held, now, over=True)
            self.begun[event.stage] = (now, event.done)
        if new or event.done == event.total or now - self.last >= self.every:
            self._print(event, now)
        else:
            self.held = event

    def _print(self, event: Event, now: float, *, over: bool = False) -> None:
        self.last, self.held = now, None
        stamp = f"{now - (self.start or 0.0):8.2f} s  " if self.stamped else ""
        count = "" if event.total is None else f" {event.done}/{event.total}"
        left = "" if over else self._left(event, now)
        line = ", ".join(part for part in (f"{event.stage}{count}", event.note, left) if part)
        if self.stamped or line != self.said:
            self.console.print(Text(f"{stamp}{line}"), soft_wrap=True)
        self.said = line

    def _left(self, event: Event, now: float) -> str:
        start, skipped = self.begun[event.stage]
        done = event.done - skipped
        if event.seconds is not None:
            return f"{duration(max(0.0, start + event.seconds - now))} left"
        if event.total is None or done <= 0 or event.done >= event.total:
            return ""
        return f"{duration((now - start) / done * (event.total - event.done))} left"


def duration(seconds: float) -> str:
    """A stretch of time for people: `45 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
