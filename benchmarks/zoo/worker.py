"""One network of the zoo: `python -m benchmarks.zoo.worker NAME` prints what came of it.

The last line is a JSON object. Halving the MAdds is only about what can be cut: the network is the
most evenly cut one within the limit, and no image is looked at.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.zoo.networks import build
from compressor.cost import Limit, touched_madds
from compressor.deploy.export import export_onnx
from compressor.errors import InfeasibleError
from compressor.network.structure import mask, materialise
from compressor.run.reading import Reading, read_network
from compressor.search.layer_nas import layer_nas
from compressor.space import Architecture

HALF = 0.5
_WRONG = 1e-6  # of the largest output, in double precision
_SHOWN = 300


Fill: TypeAlias = Callable[[dict[str, Any], nn.Module, tuple[Tensor, ...]], None]


def main(name: str) -> None:
    """Prints the outcome."""
    report(name, _fill)


def report(name: str, fill: Fill) -> None:
    """Prints as a line of JSON what `fill` finds of a network, time and memory, or why it fails."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    found: dict[str, Any] = {"name": name, "ok": False, "reason": "", "contract": None}
    try:
        fill(found, *build(name))
    except Exception as error:  # noqa: BLE001  (whatever a network or our own code raises is the finding)
        found["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
    found["ok"] = not found["reason"]
    found["seconds"] = time.perf_counter() - start
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps(found), flush=True)


def _fill(found: dict[str, Any], model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """The finding, as far as it gets; raises where it goes no further."""
    start, processor = time.perf_counter(), time.process_time()
    reading = read_network(model, example)
    space, madds = reading.space, reading.count.madds
    found |= {
        "madds": madds,
        "params": reading.count.params,
        "layers": len(space.layers),
        "frozen": [f"{f.name}: {f.reason}" for f in space.frozen],
        "madds_share": touched_madds(space.layers, reading.count.terms) / max(madds, 1),
        "read_seconds": time.perf_counter() - start,
        "read_cpu_seconds": time.process_time() - processor,
    }
    network = _half(reading)
    found["madds_ratio"] = reading.madds(network) / madds
    found["difference"] = _difference(model, example, reading, network)
    found["contract"] = found["difference"] <= _WRONG
    if not found["contract"]:
        found["reason"] = "the smaller network differs from the masked original"
        return
    with tempfile.TemporaryDirectory() as scratch:
        export_onnx(materialise(model, space, network), example, Path(scratch) / "model.onnx")
    if found["madds_ratio"] > HALF:
        found["reason"] = f"at least {found['madds_ratio']:.0%} of the MAdds are left"


def _half(reading: Reading) -> Architecture:
    """A network of half the MAdds, or the smallest."""
    space = reading.space
    if not space.layers:
        return space.original
    try:
        limit = Limit(reading.madds, HALF * reading.count.madds)
        found = layer_nas(sizes=space.sizes, limits=[limit], score=lambda _: 0.0, evaluations=1)
    except InfeasibleError:
        return space.smallest
    return found.best.architecture


def _difference(
    model: nn.Module, example: tuple[Tensor, ...], reading: Reading, network: Architecture
) -> float:
    """Largest difference from the masked original, as a share of the largest output."""
    exact, inputs = model.double(), [t.double() for t in example]
    with torch.inference_mode():
        small = tree_leaves(materialise(exact, reading.space, network)(*inputs))
        whole = tree_leaves(mask(exact, reading.space, network)(*inputs))
    model.float()
    pairs = [(s, w) for s, w in zip(small, whole, strict=True) if isinstance(w, Tensor)]
    if any(s.shape != w.shape for s, w in pairs):
        return float("inf")
    scale = max(float(w.abs().max()) for _, w in pairs)
    largest = max(float((s - w).abs().max()) for s, w in pairs)
    return largest / scale if scale > 0 else float(largest > 0)


if __name__ == "__main__":
    main(sys.argv[1])
