"""Predicted latency against measured latency, and what the prediction costs.

    python -m benchmarks.latency --json latency.json --pictures docs

Parts: `prediction` (40 networks of each sample that the table was not fitted to, timed end to end
in turns with each other and the original), `slicing` (a candidate's ONNX by slicing and by
torch.onnx.export), `fbnet` (27 devices from 100 measured networks each), `staircase` (one
convolution by its width), `profile` (where the time goes, of a network and of one of half its
MAdds), `promise` (20 budgets from 30 to 80 %: are they kept when the files are
measured again?).

Two virtual cores are at times near each other and at times not, and two threads are as fast as that
lets them. So networks are measured again, and what was measured first is reported apart, where a
small convolution among them takes over 8 % longer than when the table was built.
Times are taken by the wall clock; on a busy machine `--clock cpu` shows the processor time of the
one thread instead, which other programs do not add to.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fbnet_latency import fbnet
from benchmarks.latency_figure import draw
from benchmarks.latency_profile import profiled
from benchmarks.latency_promise import promises
from benchmarks.support import SAMPLES, environment, sample, spearman
from compressor.deploy.export import export_base
from compressor.deploy.slicing import BaseGraph
from compressor.device.local import LocalDevice
from compressor.device.measure import Settings, create_session, measure, run_session
from compressor.device.timing import Latency, Schedule
from compressor.latency.cache import read_measured, this_machine
from compressor.latency.fused import fuse
from compressor.latency.parts import Clockwork, reference_model
from compressor.latency.table import LatencyTable, build_table, spread_networks
from compressor.network.structure import materialise
from compressor.run.reading import read_network
from compressor.space import Architecture, SearchSpace

NETWORKS = ("imagenet_mobilenet_v2", "cifar10_resnet56")
PARTS = ("prediction", "slicing", "fbnet", "staircase", "profile", "promise")
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
_WHOLE = Schedule(warmup=20, repeats=3, rounds=30, seconds=2.0)
_SLOW = 1.08  # pace, as a multiple of the table's, above which the machine is another one
_TRIES = 12  # measurements at a slower pace that are reported apart
_SHARED = Path(os.environ.get("COMPRESSOR_SHARED", SAMPLES.parents[1] / "shared"))


class Bench:
    """A sample, read and exported, and a clock."""

    def __init__(self, name: str, clock: str, threads: int) -> None:
        module = sample(name)
        self.model, self.example = module.build_model().eval(), (module.example_input(),)
        self.space: SearchSpace = read_network(self.model, self.example).space
        self.graph: BaseGraph = export_base(self.model, self.example)
        self.settings, self._clock = Settings(threads=threads), CLOCKS[clock]

    def timed(self, models: Mapping[str, bytes], settings: Settings) -> dict[str, Latency]:
        """Latencies by this bench's clock."""
        return measure(models, settings, device=LocalDevice(self._clock))

    def table(self, folder: Path | None = None) -> tuple[LatencyTable, float]:
        """A table, and the seconds that building it took."""
        clockwork = Clockwork(self.timed, self.settings, this_machine(self.settings), folder)
        start = time.perf_counter()
        table = build_table(
            self.graph, self.space, clockwork, lambda m: fuse(m, self.settings), seed=0
        )
        return table, time.perf_counter() - start

    def shares(self, networks: list[Architecture]) -> tuple[list[Latency], float]:
        """Networks end to end, all in turns with each other and with the original.

        Also the milliseconds of the reference part, which takes turns with them: the pace.
        """
        base = self.graph.slice(self.space, self.space.original)
        settings = Settings(threads=self.settings.threads, schedule=_WHOLE)
        models = {str(i): self.graph.slice(self.space, a) for i, a in enumerate(networks)}
        times = self.timed({"original": base, **models, "": reference_model()}, settings)
        return [times[name] for name in models], times[""].median_ms


def prediction(bench: Bench, count: int) -> dict[str, Any]:
    """Error and rank correlation on networks that the table was not fitted to."""
    with tempfile.TemporaryDirectory() as scratch:
        table, seconds = bench.table(Path(scratch))
        _, again = bench.table(Path(scratch))
        known = read_measured(Path(scratch), this_machine(bench.settings))
    assert known is not None  # noqa: S101  (both tables wrote it)
    # two more, since the smallest and the original are among those that the table was fitted to
    drawn = spread_networks(table.many, bench.space.sizes, count + 2, seed=1)
    networks = [a for a in drawn if a not in table.shares]
    guesses = table.many(np.array(networks, dtype=np.int64))
    start = time.perf_counter()
    for network in networks * 25:
        table(network)
    each = (time.perf_counter() - start) / len(networks) / 25
    slower = []
    while True:
        measured, pace = bench.shares(networks)
        found = _errors(guesses, measured) | {"pace": pace / known.reference_ms}
        if found["pace"] <= _SLOW or len(slower) == _TRIES:
            break
        slower.append(found)
    points = [[float(g), m.ratio] for g, m in zip(guesses, measured, strict=True)]
    return {
        "networks": len(networks),
        **found,
        "measured_while_slower": slower,
        "promised_error": table.correction.error,
        "promised_spread": table.correction.spread,
        "build_seconds": seconds,
        "rebuild_seconds": again,
        "predict_microseconds": each * 1e6,
        "points": points,
    }


def _errors(guesses: Any, measured: Sequence[Latency]) -> dict[str, float]:
    shares = np.array([m.ratio for m in measured])
    errors = np.abs(guesses / shares - 1)
    return {
        "mean_error": float(errors.mean()),
        "p90_error": float(np.quantile(errors, 0.9)),
        "spearman": spearman(guesses, shares),
        "interval_width": float(
            np.median([(m.ratio_high - m.ratio_low) / m.ratio for m in measured])
        ),
    }


def slicing(bench: Bench, count: int = 3) -> dict[str, Any]:
    """Seconds to a candidate's ONNX by slicing and by exporting it, and whether they agree."""
    rng = np.random.default_rng(2)
    sliced, exported, differences = [], [], []
    for _ in range(count):
        network = tuple(int(rng.integers(size)) for size in bench.space.sizes)
        start = time.perf_counter()
        data = bench.graph.slice(bench.space, network)
        sliced.append(time.perf_counter() - start)
        small = materialise(bench.model, bench.space, network).eval()
        start = time.perf_counter()
        program = torch.onnx.export(
            small, bench.example, dynamo=True, external_data=False, verbose=False
        )
        exported.append(time.perf_counter() - start)
        differences.append(_difference(data, program.model_proto.SerializeToString(), bench))
    return {
        "slice_seconds": float(np.median(sliced)),
        "export_seconds": float(np.median(exported)),
        "ratio": float(np.median(exported) / np.median(sliced)),
        "largest_difference": max(differences),
    }


def _difference(one: bytes, other: bytes, bench: Bench) -> float:
    """Largest difference of the outputs as a share of the largest output."""
    shape = (1, *bench.example[0].shape[1:])
    inputs = [np.random.default_rng(0).standard_normal(shape).astype(np.float32)]
    outputs = [run_session(create_session(m, Settings()), inputs)[0] for m in (one, other)]
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max())


def staircase(clock: str) -> dict[str, Any]:
    """Microseconds of 3×3 convolutions on 16×16 positions as one width changes."""
    curves = {
        "output channels (64 in)": lambda w: _convolution(64, w, 1),
        "input channels (64 out)": lambda w: _convolution(w, 64, 1),
        "depthwise": lambda w: _convolution(w, w, w),
    }
    widths = sorted({*range(4, 100, 4), *range(16, 97, 16), 17, 18, 33, 34, 49, 50, 65, 66, 81, 82})
    settings = Settings(schedule=Schedule(warmup=20, repeats=5, rounds=20, seconds=1e-3))
    found: dict[str, Any] = {"widths": widths}
    for name, curve in curves.items():
        times: list[float] = []
        for start in range(0, len(widths), 8):
            models = {str(w): curve(w) for w in widths[start : start + 8]}
            taken = measure(
                {"": reference_model(), **models}, settings, device=LocalDevice(CLOCKS[clock])
            )
            times += [taken[m].ratio * taken[""].median_ms * 1e3 for m in models]
        found[name] = times
    return found


def _convolution(before: int, after: int, groups: int) -> bytes:
    """A convolution as a model of its own."""
    weight = np.random.default_rng(0).uniform(0.01, 1, (after, before // groups, 3, 3))
    constant = numpy_helper.from_array(weight.astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, group=groups)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 16, 16])
        for name, channels in (("x", before), ("y", after))
    ]
    graph = helper.make_graph([node], "convolution", ports[:1], ports[1:], [constant])
    opset = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samples", nargs="+", default=NETWORKS)
    parser.add_argument("--count", type=int, default=40, help="networks that are predicted")
    parser.add_argument("--promised", default="imagenet_mobilenet_v2", help="sample of the budgets")
    parser.add_argument("--runs", type=int, default=20, help="budgets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for latency-*.png, *.svg")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "threads": given.threads, "clock": given.clock, "load": os.getloadavg(),
        "environment": environment(),
    }  # fmt: skip
    if {"prediction", "slicing"} & set(given.parts):
        for name in given.samples:
            found[name] = _of_sample(
                Bench(name, given.clock, given.threads), given.parts, given.count
            )
    if "fbnet" in given.parts:
        found["fbnet"] = fbnet(_SHARED / "data" / "fbnet_latency_help.npz")
    if "staircase" in given.parts:
        found["staircase"] = staircase(given.clock)
    if "profile" in given.parts:
        found["profile"] = {
            name: profiled(name, given.threads, given.pictures) for name in given.samples
        }
    if "promise" in given.parts:
        found["promise"] = promises(given.promised, given.runs, given.threads)
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if given.pictures:
        draw(found, given.pictures)


def _of_sample(bench: Bench, parts: Sequence[str], count: int) -> dict[str, Any]:
    found = {}
    if "prediction" in parts:
        found["prediction"] = prediction(bench, count)
    if "slicing" in parts:
        found["slicing"] = slicing(bench)
    return found


if __name__ == "__main__":
    main()
