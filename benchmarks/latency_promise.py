"""Whether latency budgets are kept when the delivered files are measured again, later.

It is about latency, not about accuracy: networks are cut and recalibrated, not refitted, and the
score is the share of the multiply-adds that is left. The search then looks for networks with the
most work in the least time, the ones whose time a prediction is most likely to have underestimated.
Files are measured again after the last run, each in turns with the original.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import compressor
from benchmarks.support import sample
from compressor.deploy.export import export_onnx
from compressor.device.measure import Settings, measure
from compressor.device.timing import Schedule
from compressor.errors import CompressorError
from compressor.network.counting import count

LOW, HIGH = 0.3, 0.8  # budgets, as shares of the original's latency
_LATER = Schedule(rounds=30, seconds=4.0)
_BATCHES = 2  # of calibration data
_EVALUATIONS = 40


def promises(name: str, runs: int, threads: int) -> list[dict[str, Any]]:
    """One row for each budget, evenly spread; `error` where no network was delivered."""
    with tempfile.TemporaryDirectory() as scratch:
        module = sample(name)
        original = Path(scratch) / "original.onnx"
        export_onnx(module.build_model(), (module.example_input(),), original)
        rows = [
            _run(name, float(share), number, Path(scratch), threads)
            for number, share in enumerate(np.linspace(LOW, HIGH, runs))
        ]
        return [row if "error" in row else row | _again(original, row, threads) for row in rows]


def _run(name: str, share: float, number: int, scratch: Path, threads: int) -> dict[str, Any]:
    module, example = sample(name), (sample(name).example_input(),)
    model = module.build_model()
    whole = count(model, example).madds
    row: dict[str, Any] = {"budget": share, "seed": number}
    try:
        result = compressor.compress(
            model, example, budget=f"latency={share:.4%}",
            calibration=_some(module.calibration_data()),
            score=lambda network: count(network, example).madds / whole,
            out=scratch / f"run{number}", evaluations=_EVALUATIONS, seed=number, refit=False,
            threads=threads, latency_folder=scratch / "operators",
        )  # fmt: skip
    except CompressorError as error:
        row["error"] = f"{type(error).__name__}: {error}"
    else:
        (promised,) = result.summary.budgets
        row |= {"file": str(result.onnx_path), "delivered": promised.reached / promised.limit}
    print(f"  {row}", file=sys.stderr)
    return row


def _some(batches: Iterable[Any]) -> list[Any]:
    return list(itertools.islice(batches, _BATCHES))


def _again(original: Path, row: dict[str, Any], threads: int) -> dict[str, Any]:
    budget, models = row["budget"], {"original": original, "again": Path(row["file"])}
    found = measure(models, Settings(threads=threads, schedule=_LATER))["again"]
    return {
        "again": found.ratio,
        "interval": [found.ratio_low, found.ratio_high],
        "kept": found.ratio <= budget,
        "upper_end_kept": found.ratio_high <= budget,
        "tightness": found.ratio / budget,
    }
