"""What a long step tells whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Event:
    """A step moved on.

    Attributes:
        stage: which step: "read", "verify", "search", "refit", "fine-tune", "export" and others.
        done: finished units of the step.
        total: units in all, or None where that is not known.
        note: the latest finding in a few words, for example the best score so far.
        seconds: about how long the step takes from its first event on, where that is known before
            it begins; None where only its units tell.
    """

    stage: str
    done: int
    total: int | None = None
    note: str = ""
    seconds: float | None = None


Progress: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """Watches nothing."""
    del event
