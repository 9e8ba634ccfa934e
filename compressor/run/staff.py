"""Who scores the candidates of a run: this process, or workers beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compressor.network.data import device_of
from compressor.progress import Progress
from compressor.run.request import Request
from compressor.score.rounds import Alone, Crew
from compressor.score.scorer import Guide, Scorer
from compressor.workers.cluster import require_cluster
from compressor.workers.crew import Staff, hired


def require_workers(request: Request) -> None:
    """Returns if the workers of a run could be started; nothing is started.

    Raises:
        UsageError: Ray is needed and not installed, or there is no cluster at its address.
    """
    if _elsewhere(request):
        require_cluster(request.options.ray)


@contextmanager
def staffed(
    request: Request, scorer: Scorer, guide: Guide, progress: Progress
) -> Iterator[Crew | None]:
    """Those who score the rounds of a run; None where each network is asked for alone.

    Raises:
        UsageError: see `compressor.workers.crew.hired`.
        WorkerError: see there.
    """
    options = request.options
    if _elsewhere(request):
        gpus = options.worker_gpus
        if gpus is None:
            gpus = 1.0 if device_of(request.model).type == "cuda" else 0.0
        with hired(scorer, Staff(options.workers, options.ray, gpus), progress) as crew:
            yield crew
    else:
        yield Alone(scorer, guide.probe) if options.asked > 1 else None


def _elsewhere(request: Request) -> bool:
    return request.options.workers > 1 or request.options.ray is not None
