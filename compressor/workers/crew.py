"""A crew of Ray's actors, each with the network and the library in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from compressor.errors import WorkerError
from compressor.progress import Event, Progress
from compressor.score.probe import Share, hints
from compressor.score.rounds import Answer
from compressor.score.scorer import Scorer
from compressor.score.trials import Standard
from compressor.search.outcome import Outcome
from compressor.search.trend import Hints
from compressor.space import Architecture, SearchSpace
from compressor.workers.cluster import connected
from compressor.workers.parcel import pack
from compressor.workers.pool import Call, Lost, Pool
from compressor.workers.sharing import shares
from compressor.workers.worker import Worker, versions

_LEAST = 1e-6  # seconds of a layer without neighbours


@dataclass(frozen=True)
class Staff:
    """Which workers are wanted.

    Attributes:
        workers: how many.
        address: of a Ray cluster; None starts Ray on this machine.
        gpus: of each worker, or a share of one.
    """

    workers: int
    address: str | None = None
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Of torch, and CPUs that are declared, of each worker.

        On one machine the workers share the threads that torch has here; on a cluster each gets as
        many.
        """
        here = torch.get_num_threads()
        return here if self.address is not None else max(1, here // self.workers)


class RayCrew:
    """Scores candidates on workers."""

    def __init__(
        self, pool: Pool, ray: Any, staff: Staff, space: SearchSpace, progress: Progress
    ) -> None:
        """Starts nothing.

        Args:
            pool: of `Worker` actors.
            ray: the package, connected.
            staff: how many workers there are.
            space: that is searched; with a layer at least where there are probes.
            progress: told of probes.
        """
        self._pool, self._ray, self._staff, self._space = pool, ray, staff, space
        self._progress = progress
        # Until it is known: of a layer two neighbours, which are computed from there to the end.
        self._seconds = [2.0 * left for left in range(len(space.layers), 0, -1)]
        self._start = float(len(space.layers))
        self._sent: tuple[Standard, Any] | None = None

    def answers(
        self, networks: Sequence[Architecture], standard: Standard | None
    ) -> Iterator[Answer]:
        """Scores the networks, each compared with the standard; in their order.

        Raises:
            WorkerError: no worker can be had.
        """
        sent = self._send(standard)
        for found in self._pool.results([Call("score", (a, sent)) for a in networks]):
            if isinstance(found, Lost):
                reason = f"WorkerError: the workers that scored it died: {found.reason}"
                yield Answer(Outcome(None, reason, found.seconds))
            else:
                yield found

    def probe(self, base: Architecture, /) -> Hints:
        """What the neighbours of a network cost; workers take layers that follow each other.

        Raises:
            WorkerError: no worker can be had, or each dies of it.
        """
        layers = len(self._space.layers)
        parts = shares(self._seconds, self._start, self._staff.workers)
        calls = [Call("probe", (base, part, part is parts[-1])) for part in parts]
        found: list[Share] = []
        for answered in self._pool.results(calls):
            if isinstance(answered, Lost):
                raise WorkerError(
                    "the networks next to the best one are compared on workers, but those that "
                    f"did it died: {answered.reason}; give each worker more memory, or run with "
                    "fewer workers; the same command resumes"
                )
            found.append(answered)
            self._progress(Event("probe", answered.layers.stop, layers, "on workers"))
        # What it took decides on who does what next time, and on nothing that is found.
        self._start = found[-1].own_seconds
        self._seconds = [seconds for share in found for seconds in self._own_seconds(share)]
        return hints(self._space, base, found)

    def _own_seconds(self, share: Share) -> list[float]:
        """What each layer took without coming there, which a share without the network needs."""
        first, *others = share.seconds
        if share.own is None and share.layers.start > 0:
            first -= self._start
        return [max(each, _LEAST) for each in (first, *others)]

    def _send(self, standard: Standard | None) -> Any:
        """Once for all workers, into Ray's store."""
        if standard is None:
            return None
        if self._sent is None or self._sent[0] is not standard:
            self._sent = standard, self._ray.put(standard)
        return self._sent[1]


@contextmanager
def hired(scorer: Scorer, staff: Staff, progress: Progress) -> Iterator[RayCrew]:
    """Workers that hold a scorer, for as long as the block takes.

    Args:
        scorer: sent once to each worker, through Ray's store.
        staff: which workers.
        progress: told when workers are ready.

    Raises:
        UsageError: Ray is missing or there is no such cluster; something cannot be sent.
        WorkerError: no worker can be had, or one cannot load what it is sent.
    """
    with connected(staff.address, staff.workers * staff.threads) as ray:
        parcel, wanted = ray.put(pack(scorer)), versions()
        actor = ray.remote(Worker).options(
            num_cpus=staff.threads,
            num_gpus=staff.gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )

        def hire() -> tuple[Any, Any]:
            worker = actor.remote(staff.threads)
            return worker, worker.load.remote(parcel, wanted, sys.path)

        def told(ready: int) -> None:
            progress(Event("workers", ready, staff.workers, "ready"))

        progress(Event("workers", 0, staff.workers, "starting"))
        pool = Pool(ray, staff.workers, hire, told)
        try:
            yield RayCrew(pool, ray, staff, scorer.library.space, progress)
        finally:
            pool.close()
