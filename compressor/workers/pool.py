"""Calls dealt to workers. One that dies is replaced, and its call made again elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.errors import WorkerError

_TRIES = 2
_PATIENCE = 120.0  # seconds for one worker at least to be there
_LETTERS = 300  # of a reason


@dataclass(frozen=True)
class Call:
    """A method of a worker, and what it is given."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Lost:
    """A call whose worker died, each time that it was made.

    Attributes:
        reason: what is known of the last death.
        seconds: since it was first made.
    """

    reason: str
    seconds: float


@dataclass
class _Hand:
    """A worker, what it was told last, and which call that is; None while it is loading."""

    actor: Any
    pending: Any
    loaded: bool = False
    number: int | None = None


class Pool:
    """Workers that hold the same, and take whatever call is next."""

    def __init__(
        self,
        ray: Any,
        count: int,
        hire: Callable[[], tuple[Any, Any]],
        told: Callable[[int], None],
    ) -> None:
        """Hires all workers; they load on their own.

        Args:
            ray: the package, connected.
            count: of workers.
            hire: starts one, and tells it what to load: the actor, and the reference of an answer
                that is empty, or says why it cannot work here.
            told: called with how many workers are ready, whenever one more is.
        """
        self._ray, self._count, self._hire, self._told = ray, count, hire, told
        self._failed = 0  # starts, since one succeeded
        self._hands = [self._new() for _ in range(count)]

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._hands = []

    def results(self, calls: Sequence[Call]) -> Iterator[Any]:
        """What the calls return, in their order; `Lost` where workers died of one.

        Raises:
            WorkerError: no worker can be had, or one cannot load what it is sent.
            Exception: what a call raised.
        """
        todo, tries = deque(range(len(calls))), Counter[int]()
        began: dict[int, float] = {}
        done: dict[int, Any] = {}
        try:
            for place in range(len(calls)):
                while place not in done:
                    self._deal(calls, todo, began)
                    for hand in self._returned():
                        number, found = hand.number, self._result(hand)
                        if number is None:
                            continue
                        if isinstance(found, _Death):
                            tries[number] += 1
                            if tries[number] < _TRIES:
                                todo.appendleft(number)
                                continue
                            found = Lost(found.reason, time.perf_counter() - began[number])
                        done[number] = found
                yield done.pop(place)
        finally:
            # Where somebody stops half-way, nobody may answer to an earlier call later on.
            for hand in [h for h in self._hands if h.number is not None]:
                self._replace(hand)

    def _new(self) -> _Hand:
        return _Hand(*self._hire())

    def _replace(self, hand: _Hand) -> None:
        self._ray.kill(hand.actor)
        self._hands[self._hands.index(hand)] = self._new()

    def _deal(self, calls: Sequence[Call], todo: deque[int], began: dict[int, float]) -> None:
        for hand in self._hands:
            if not todo:
                return
            if hand.loaded and hand.number is None:
                hand.number = todo.popleft()
                began.setdefault(hand.number, time.perf_counter())
                call = calls[hand.number]
                hand.pending = getattr(hand.actor, call.method).remote(*call.arguments)

    def _returned(self) -> list[_Hand]:
        """Workers that have answered, or died; waits for the first."""
        waiting = {h.pending: h for h in self._hands if h.number is not None or not h.loaded}
        working = any(h.loaded for h in waiting.values())
        patience = None if working else _PATIENCE
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=patience)
        if not ready:
            raise WorkerError(
                f"a search needs one worker at least, but none of {self._count} was there after "
                f"{_PATIENCE:.0f} s; the cluster has {_listed(self._ray.cluster_resources())} in "
                f"all and {_listed(self._ray.available_resources())} free: ask for less, or wait "
                "until it is free; the same command resumes"
            )
        return [waiting[reference] for reference in ready]

    def _result(self, hand: _Hand) -> Any:
        """The answer of a worker, which is free then; or its death, and it is replaced."""
        errors = self._ray.exceptions
        try:
            found = self._ray.get(hand.pending)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if hand.loaded:
                hand.number = None
                raise cause from None
            raise _unfit(f"{type(cause).__name__}: {cause}") from error
        except errors.RayError as error:
            reason = _first_line(error)
            if not hand.loaded:
                self._failed += 1
                if self._failed >= _TRIES * self._count:
                    raise _unfit(reason) from error
            self._replace(hand)
            return _Death(reason)
        if not hand.loaded:
            if found:
                raise _unfit(f"it has {found}")
            hand.loaded, self._failed = True, 0
            self._told(sum(h.loaded for h in self._hands))
            return None
        hand.number = None
        return found


@dataclass(frozen=True)
class _Death:
    reason: str


def _unfit(why: str) -> WorkerError:
    return WorkerError(
        "a worker needs the same versions of Python, torch and this package as here, and must be "
        "able to import what the target's code imports, but one could not load what it was sent: "
        f"{why[:_LETTERS]}; install what is missing there, keep code and data under the same path "
        "on every machine, or start the cluster with a working_dir in its runtime environment"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:_LETTERS]


def _listed(resources: dict[str, float]) -> str:
    named = [f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU")]
    return " and ".join(named)
