"""Shows how far a run is: a live display on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Live
from rich.text import Text

from compressor.progress import Event, Progress

_EVERY = 10.0  # seconds between plain lines of one stage
_MEMORY = 900.0  # seconds that the estimate looks back: one evaluation may take minutes


@contextmanager
def watching(console: Console) -> Iterator[Progress]:
    """Gives a callable that shows events on the console until the block ends."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    live = Live(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        speed_estimate_period=_MEMORY,
        # what is printed meanwhile keeps its own stream: stdout may be read by a program
        redirect_stdout=False,
    )
    with live:
        yield _LiveBars(live)


@dataclass
class _LiveBars:
    """One bar for each stage."""

    live: Live
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if event.stage not in self.tasks:
            self._close()
            self.tasks[event.stage] = self.live.add_task(event.stage, total=None, note="")
        task = self.tasks[event.stage]
        self.live.update(task, completed=event.done, total=event.total, note=event.note)

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
    begun: dict[str, tuple[float, int]] = field(default_factory=dict)
    last: float = 0.0
    held: Event | None = None

    def __call__(self, event: Event) -> None:
        """Prints a line, or holds it back while the last one is fresh enough."""
        now = self.clock()
        new = event.stage not in self.begun
        if new:
            if self.held is not None:
                self._print(self.held, now, over=True)
            self.begun[event.stage] = (now, event.done)
        if new or event.done == event.total or now - self.last >= _EVERY:
            self._print(event, now)
        else:
            self.held = event

    def _print(self, event: Event, now: float, *, over: bool = False) -> None:
        self.last, self.held = now, None
        count = "" if event.total is None else f" {event.done}/{event.total}"
        left = "" if over else self._left(event, now)
        line = ", ".join(part for part in (f"{event.stage}{count}", event.note, left) if part)
        self.console.print(Text(line), soft_wrap=True)

    def _left(self, event: Event, now: float) -> str:
        start, skipped = self.begun[event.stage]
        done = event.done - skipped
        if event.total is None or done <= 0 or event.done >= event.total:
            return ""
        return f"{duration((now - start) / done * (event.total - event.done))} left"


def duration(seconds: float) -> str:
    """A stretch of time for people: `45 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
