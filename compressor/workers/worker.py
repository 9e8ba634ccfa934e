"""What runs on a worker: it holds the network and the library, and scores what it is given.

Knows nothing of Ray but for how it is sent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from compressor.score.probe import Probe, Share
from compressor.score.rounds import Answer, answer
from compressor.score.scorer import Scorer
from compressor.score.trials import Standard
from compressor.space import Architecture
from compressor.versions import version_of
from compressor.workers.parcel import unpack

_PACKAGES = ("layernas-compressor", "torch")


class Worker:
    """Scores candidates of one network in a process of its own."""

    def __init__(self, threads: int) -> None:
        """Holds nothing yet.

        Args:
            threads: of torch.
        """
        torch.set_num_threads(threads)
        self._scorer: Scorer | None = None
        self._probe: Probe | None = None

    def load(self, parcel: bytes, wanted: Mapping[str, str], folders: Sequence[str]) -> str:
        """Unpacks a scorer, unless the versions here are others; then it says which.

        Args:
            parcel: from `compressor.workers.parcel.pack`.
            wanted: versions.
            folders: that modules are imported from where the parcel comes from, in order; those
                that are there are looked into here as well, after all others.
        """
        sys.path += [f for f in folders if f not in sys.path and Path(f).exists()]
        here = versions()
        others = [f"{k} {here[k]} instead of {wanted[k]}" for k in here if here[k] != wanted[k]]
        if not others:
            self._scorer = unpack(parcel)
        return ", ".join(others)

    def score(self, architecture: Architecture, standard: Standard | None) -> Answer:
        """Scores a candidate, compared with the standard."""
        assert self._scorer is not None  # noqa: S101  (loaded first)
        return answer(self._scorer, architecture, standard)

    def probe(self, base: Architecture, layers: range, own: bool) -> Share:
        """Scores the neighbours of a network in some layers, as `compressor.score.probe.Probe`."""
        assert self._scorer is not None  # noqa: S101  (loaded first)
        if self._probe is None:
            self._probe = self._scorer.probe()
        assert self._probe is not None  # noqa: S101  (asked for only where there is one)
        return self._probe.share(base, layers, own=own)


def versions() -> dict[str, str]:
    """Of what must be the same on all workers."""
    found = {name: version_of(name) for name in _PACKAGES}
    return {"python": ".".join(map(str, sys.version_info[:2])), **found}
