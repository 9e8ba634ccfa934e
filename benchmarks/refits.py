"""What each step of the last refit brings, on images that it was made from and on others.

    python -m benchmarks.refits cifar10_resnet56 --budget madds=50%

One network of the sample, the first that a search would score, is put together from the library
and refitted on the calibration images: with one fixed ridge for all layers, and with a ridge for
each layer that images left out decide. Reported are the agreement with the original on the
calibration images and on the search images, and top-1 on the latter. The images of `test_data()`
are not looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

from torch import nn

from benchmarks.prepared import Prepared, hinted, prepare
from benchmarks.support import environment
from compressor.refit.folds import Folds
from compressor.refit.sequence import Refitter
from compressor.score.judge import make_judge, top1
from compressor.space import Architecture


def forms(prepared: Prepared, architecture: Architecture) -> Iterator[tuple[str, nn.Module]]:
    """The network after each step, by name."""
    library = prepared.library
    yield "library", library.build(architecture)
    refitter = Refitter(library.model, library.space, prepared.example, prepared.calibration)
    chosen = Folds.best
    for ridges, choose in (("one ridge", lambda *_, **__: 0), ("chosen ridges", chosen)):
        network = library.build(architecture)
        Folds.best = choose  # type: ignore[assignment,method-assign]
        try:
            refitter.whole(network, architecture)
        finally:
            Folds.best = chosen  # type: ignore[method-assign]
        yield ridges, network


def measured(name: str, budget: str) -> dict[str, object]:
    """Every form of one network."""
    prepared = prepare(name, budget)
    architecture = hinted(prepared)
    judges = {
        f"{images}, temperature {temperature:g}": make_judge(
            "agreement", batches, prepared.model, temperature
        )
        for images, batches in (
            ("calibration", prepared.calibration), ("search", prepared.validation)
        )
        for temperature in (1.0, 3.0)
    }  # fmt: skip
    rows = []
    start = time.process_time()
    for form, network in forms(prepared, architecture):
        row: dict[str, object] = {"form": form, "processor_seconds": time.process_time() - start}
        row |= {judged: judge(network) for judged, judge in judges.items()}
        rows.append(row | {"search, top-1": 100 * top1(network, prepared.validation)})
        print(f"  {row}", file=sys.stderr)
        start = time.process_time()
    return {
        "sample": name, "budget": budget, "architecture": architecture, "forms": rows,
        "original, search, top-1": 100 * top1(prepared.model, prepared.validation),
        "environment": environment(),
    }  # fmt: skip


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--budget", default="madds=50%")
    given = parser.parse_args()
    print(json.dumps(measured(given.sample, given.budget), indent=1))


if __name__ == "__main__":
    main()
