"""What is told while a search goes on: how far it is, and the best scores within the limits."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.cost import Limit
from compressor.progress import Event, Progress
from compressor.search.ledger import Known
from compressor.search.outcome import Outcome
from compressor.space import Architecture


class Watcher:
    """Tells how far the search is and what the best scores within the limits are."""

    def __init__(
        self,
        total: int,
        limits: Sequence[Sequence[Limit]],
        known: Known,
        progress: Progress,
    ) -> None:
        """Tells what was known before.

        Args:
            total: evaluations in all.
            limits: of each network that is asked for.
            known: outcomes of an interrupted run.
            progress: told.
        """
        self._total, self._limits, self._progress = total, limits, progress
        self._best: list[float | None] = [None] * len(limits)
        self._done = 0
        earlier = [(a, outcome) for a, outcomes in known.items() for outcome in outcomes]
        for architecture, outcome in earlier[:total]:
            self._note(architecture, outcome)
        self._tell("resumed" if known else "")

    def add(self, architecture: Architecture, outcome: Outcome, more: str = "") -> None:
        """One more evaluation, and what else there is to tell."""
        self._note(architecture, outcome)
        failed = f"last failed: {outcome.reason}" if outcome.score is None else ""
        self._tell(", ".join(part for part in (failed, more) if part))

    def _note(self, architecture: Architecture, outcome: Outcome) -> None:
        self._done += 1
        score = outcome.score
        for place, (best, limits) in enumerate(zip(self._best, self._limits, strict=True)):
            if score is None or (best is not None and score <= best):
                continue
            if all(limit.holds(limit.cost(architecture)) for limit in limits):
                self._best[place] = score

    def _tell(self, more: str) -> None:
        texts = ["–" if best is None else f"{best:.4f}" for best in self._best]
        known = any(best is not None for best in self._best)
        best = f"best score in budget {' / '.join(texts)}" if known else ""
        note = ", ".join(part for part in (best, more) if part)
        self._progress(Event("search", min(self._done, self._total), self._total, note))
