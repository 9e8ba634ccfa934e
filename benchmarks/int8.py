"""What the choices behind `--int8` bring on one network: types, ranges, the floor, and its time.

    python -m benchmarks.int8 cifar10_resnet20 --json int8.json

The network of the sample is exported as it is, uncut, and quantised as `compressor compress --int8`
does it, except for what a row names:

- `types`: other types of activations and weights;
- `ranges`: other ranges of activations;
- `floor`: files that are worse and worse, to see where the network stops working;
- `timing`: the file as delivered beside the same graph with the made-up ranges of candidates.

Each file is scored in ONNX Runtime on the search images, beside the share of the variance of the
float file's outputs that it explains on the calibration images. Times are taken in turns with the
float file, batch 1, one thread. The images of `test_data()` are not looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from onnxruntime import quantization as ort
from torch import Tensor, nn

from benchmarks.support import environment, sample
from compressor.deploy import int8
from compressor.deploy.export import export_onnx
from compressor.deploy.quantise import IMAGES, quantise_for_timing
from compressor.device.measure import Settings, measure
from compressor.device.timing import Schedule
from compressor.network.data import Batches
from compressor.score.judge import make_judge

Change = tuple[str, dict[str, Any]]
"""A function of the runtime's quantiser, and the arguments of it that are others."""


def _cut(percentile: float) -> Change:
    return "create_calibrator", {"extra_options": {"percentile": percentile}}


def _ranges(method: Any) -> Change:
    return "create_calibrator", {"calibrate_method": method, "extra_options": {}}


DELIVERED: Change = ("QDQQuantizer", {})
ROWS: Mapping[str, Mapping[str, Change]] = {
    "types": {
        "uint8, int8": DELIVERED,
        "int8, int8": ("QDQQuantizer", {"activation_qType": ort.QuantType.QInt8}),
        "uint8, uint8": ("QDQQuantizer", {"weight_qType": ort.QuantType.QUInt8}),
        "uint8, int8 of 7 bits": ("QDQQuantizer", {"reduce_range": True}),
    },
    "ranges": {
        "minimum and maximum": _ranges(ort.CalibrationMethod.MinMax),
        "99.9999 %": _cut(99.9999),
        "99.999 %": DELIVERED,
        "99.99 %": _cut(99.99),
        "entropy": _ranges(ort.CalibrationMethod.Entropy),
    },
    "floor": {
        "as delivered": DELIVERED,
        "one scale for all channels": ("QDQQuantizer", {"per_channel": False}),
        **{f"ranges cut at {percentile:g} %": _cut(percentile) for percentile in (99, 98, 95, 90)},
    },
}
PARTS = (*ROWS, "timing")


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """Files are quantised with the change."""
    name, arguments = change
    plain = getattr(ort, name)
    with patch.object(ort, name, lambda *given, **how: plain(*given, **{**how, **arguments})):
        yield


class Bench:
    """One network, its float file and the files that were quantised so far."""

    def __init__(
        self, model: nn.Module, example: Tensor, calibration: Batches, validation: Batches,
        *, images: int = IMAGES, schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        self._model, self._example, self._calibration = model, (example,), calibration
        self._images, self._settings = images, Settings(schedule=schedule or Schedule())
        self._judges = {name: make_judge(name, validation, model) for name in ("agreement", "top1")}
        with tempfile.TemporaryDirectory() as scratch:
            path = export_onnx(model, self._example, Path(scratch) / "float.onnx").path
            self.source = path.read_bytes()
        self._made: dict[str, int8.Int8] = {}

    def original(self) -> dict[str, float]:
        """What the network itself reaches on the search images, and the size of its file."""
        return {"top1": self._judges["top1"](self._model), "bytes": len(self.source)}

    def made(self, change: Change) -> int8.Int8:
        """The file with a change, however bad it is."""
        if str(change) not in self._made:
            with tempfile.TemporaryDirectory() as scratch, changed(change):
                path = Path(scratch) / "float.onnx"
                path.write_bytes(self.source)
                with patch.object(int8, "FLOOR", -float("inf")):
                    self._made[str(change)] = int8.quantised_network(
                        path, self._calibration, self._settings, self._images
                    )
        return self._made[str(change)]

    def judged(self, change: Change) -> dict[str, float]:
        """How well the file with a change works."""
        network = self.made(change)
        where = (network, self._model, self._example, self._settings)
        scores = {name: int8.score_of_file(j, *where) for name, j in self._judges.items()}
        return {**scores, "explained": network.explained, "bytes": len(network.data)}

    def timed(self, files: Mapping[str, bytes]) -> dict[str, dict[str, float]]:
        """Times of the files, as shares of the float file's as well, in turns."""
        found = measure({"float": self.source, **files}, self._settings)
        return {
            name: {
                "ms": latency.median_ms, "time": latency.ratio,
                "time_low": latency.ratio_low, "time_high": latency.ratio_high,
            }
            for name, latency in found.items()
        }  # fmt: skip

    def part(self, name: str) -> dict[str, dict[str, float]]:
        """All rows of one part."""
        if name == "timing":
            made_up = quantise_for_timing(self.source)
            return self.timed({"as delivered": self.made(DELIVERED).data, "made up": made_up})
        rows = {}
        for row, change in ROWS[name].items():
            rows[row] = self.judged(change)
            print(f"  {name}: {row}: {rows[row]}", file=sys.stderr)
        if name == "types":
            times = self.timed({row: self.made(change).data for row, change in ROWS[name].items()})
            return {row: rows.get(row, {}) | found for row, found in times.items()}
        return rows


def measured(name: str, parts: Sequence[str], images: int, seconds: float) -> dict[str, object]:
    """The parts that were asked for, of one sample."""
    module = sample(name)
    bench = Bench(
        module.build_model().eval().requires_grad_(False), module.example_input(),
        module.calibration_data(), module.validation_data(),
        images=images, schedule=Schedule(rounds=40, seconds=seconds),
    )  # fmt: skip
    return {
        "sample": name, "images": images, "original": bench.original(),
        **{part: bench.part(part) for part in parts},
        "load": os.getloadavg(), "environment": environment(),
    }  # fmt: skip


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sample")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--images", type=int, default=IMAGES, help="calibration images")
    parser.add_argument("--seconds", type=float, default=30.0, help="time for each measurement")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(given.sample, given.parts, given.images, given.seconds)
    text = json.dumps(found, indent=1)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
