"""Compares the rankings: every layer's inner width cut to a share, top-1 without any training.

python -m benchmarks.ranking cifar10_resnet20 --share 0.5

A layer is inner where one weight alone makes its channels, as the first convolution of a residual
block does; the residual stream keeps its width. Channels are ranked on the sample's
`calibration_data()`, weights are refitted from the layer library (or only sliced), BatchNorm
statistics are recalibrated on the same images, and top-1 is that of the sample's `test_data()`.
"""

from __future__ import annotations

import argparse
import json
import time

from torch import nn

from benchmarks.support import environment, sample
from compressor.coupling import Role
from compressor.network.data import as_inputs
from compressor.network.structure import materialise
from compressor.refit.library import LayerLibrary, make_library
from compressor.refit.ranking import RANKINGS
from compressor.run.reading import Reading, read_network
from compressor.score.evaluate import recalibrate
from compressor.score.judge import top1
from compressor.space import Architecture, SearchLayer


def inner(layer: SearchLayer) -> bool:
    """Whether one weight alone makes the layer's channels."""
    couplings = layer.group.couplings if layer.group else ()
    makers = {c.tensor.rpartition(".")[0] for c in couplings if c.role is Role.PRODUCED}
    return len(makers) == 1


def narrowed(reading: Reading, share: float) -> Architecture:
    """Every inner layer at the width nearest to the share, kernels as they were."""
    options = []
    for layer in reading.space.layers:
        last = layer.choices[-1]
        wanted = share * (last.channels or 0) if inner(layer) else (last.channels or 0)
        same = [i for i, c in enumerate(layer.choices) if c.kernel == last.kernel]
        options.append(min(same, key=lambda i: abs((layer.choices[i].channels or 0) - wanted)))
    return tuple(options)


def row(library: LayerLibrary, architecture: Architecture, module: object) -> dict[str, float]:
    """Top-1 in per cent of the network with refitted weights, and with sliced ones."""
    plain = materialise(library.model, library.space, architecture).eval().requires_grad_(False)
    found: dict[str, nn.Module] = {"refitted": library.build(architecture), "sliced": plain}
    scores = {}
    for name, model in found.items():
        recalibrate(model, module.calibration_data())  # type: ignore[attr-defined]
        scores[name] = 100 * top1(model, module.test_data())  # type: ignore[attr-defined]
    return scores


def main() -> None:
    """Prints a table for `docs/library.md`, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample")
    parser.add_argument("--share", type=float, default=0.5, help="of every inner width")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    module = sample(options.sample)
    model, example = module.build_model(), as_inputs(module.example_input())
    reading = read_network(model, example)
    architecture = narrowed(reading, options.share)
    rows: dict[str, dict[str, object]] = {}
    for ranking in RANKINGS:
        start = time.perf_counter()
        library = make_library(
            model, reading.space, example, module.calibration_data(), ranking=ranking
        )
        seconds = time.perf_counter() - start
        rows[ranking] = {
            **row(library, architecture, module),
            "seconds": seconds,
            "unranked": [part.name for part in library.unranked],
        }
    report = {
        "sample": options.sample,
        "share": options.share,
        "original": 100 * top1(model, module.test_data()),
        "madds_ratio": reading.madds(architecture) / reading.count.madds,
        "layers": sum(a != b for a, b in zip(architecture, reading.space.original, strict=True)),
        "rows": rows,
        "environment": environment(),
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(
        f"{options.sample}, {report['layers']} layers at {options.share:.0%}: "
        f"{report['madds_ratio']:.1%} of the MAdds, original {report['original']:.2f} %"
    )
    print("| ranking | refitted | sliced | library | by magnitude instead |")
    print("|---|---|---|---|---|")
    for name, r in rows.items():
        print(
            f"| {name} | {r['refitted']:.2f} | {r['sliced']:.2f} | {r['seconds']:.1f} s "
            f"| {len(r['unranked'])} layers |"  # type: ignore[arg-type]
        )


if __name__ == "__main__":
    main()
