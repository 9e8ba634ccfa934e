"""Compresses a sample to a budget and reports what became of it on images nothing was tuned on.

python -m benchmarks.compression cifar10_resnet20 --budget madds=50% --finetune 3 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import compressor
from benchmarks.support import environment, mean_spread, sample
from compressor.budget import format_cost
from compressor.names import KEEP
from compressor.progress import Event
from compressor.score.judge import top1


def run(
    module: ModuleType,
    budget: str,
    evaluations: int,
    finetune: int,
    seed: int,
    score: str,
    keep: str = "best",
) -> dict[str, object]:
    """One compression; scores are top-1 in per cent on the sample's `test_data()`."""
    training = module.training_data() if finetune and hasattr(module, "training_data") else None
    with tempfile.TemporaryDirectory() as folder:
        result = compressor.compress(
            module.build_model(),
            module.example_input(),
            budget=budget,
            calibration=module.calibration_data(),
            validation=module.validation_data(),
            training=training,
            out=Path(folder) / "run",
            evaluations=evaluations,
            finetune=finetune,
            keep=keep,
            seed=seed,
            score=score,
            progress=_line,
        )
    summary = result.summary
    return {
        "seed": seed,
        "finetune": finetune,
        "test": 100 * top1(result.model, module.test_data()),
        "madds": summary.best.madds,
        "madds_ratio": summary.best.madds / summary.base.madds,
        "params_ratio": summary.best.params / summary.base.params,
        "bytes_ratio": (summary.best.file_bytes or 0) / (summary.base.file_bytes or 1),
        "latency_ms": [summary.base.latency_ms, summary.best.latency_ms],
        "search_score": summary.best.score,
        "evaluations": summary.evaluations,
        "seconds": summary.seconds,
        "stages": dict(summary.stages),
        "choices": dict(summary.choices),
    }


def _line(event: Event) -> None:
    often = event.stage in ("search", "fine-tune") and event.done % 10 in (0, 5)
    if often or (event.total and event.done == event.total):
        print(f"  {event.stage} {event.done}/{event.total} {event.note}", file=sys.stderr)


def main() -> None:
    """Runs every seed and prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample")
    parser.add_argument("--budget", default="madds=50%")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--finetune", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", choices=KEEP, default="best", help="epoch of fine-tuning")
    parser.add_argument("--score", default="agreement", help="what decides the search")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    module = sample(options.sample)
    original = 100 * top1(module.build_model(), module.test_data())
    runs = [
        run(
            module,
            options.budget,
            options.evaluations,
            options.finetune,
            seed,
            options.score,
            options.keep,
        )
        for seed in options.seeds
    ]
    report = {
        "sample": options.sample,
        "budget": options.budget,
        "score": options.score,
        "original_test": original,
        "runs": runs,
        "environment": environment(),
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{options.sample}, {options.budget}: original {original:.2f} %")
    for r in runs:
        print(
            f"  seed {r['seed']}: test {r['test']:.2f} %, MAdds {format_cost('madds', r['madds'])} "
            f"({r['madds_ratio']:.1%}), latency {r['latency_ms'][0]:.3g} -> "
            f"{r['latency_ms'][1]:.3g} ms, {r['evaluations']} evaluations, {r['seconds']:.0f} s"
        )
    print(f"  test {mean_spread([r['test'] for r in runs])} %")


if __name__ == "__main__":
    main()
