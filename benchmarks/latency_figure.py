"""Draws what `benchmarks.latency` found: the staircase, and the prediction beside the measurement.

python -m benchmarks.latency_figure latency.json docs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TITLES = {
    "imagenet_mobilenet_v2": "MobileNetV2, 224 px",
    "cifar10_resnet56": "ResNet-56, CIFAR-10",
}
_COLOURS = ("#2a6f97", "#e09f3e", "#c1121f")


def draw(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures of those parts that were measured; returns their paths."""
    written = []
    if "staircase" in found:
        written.append(_staircase(found["staircase"], folder / "latency-staircase.png"))
    predictions = {n: found[n]["prediction"] for n in _TITLES if "prediction" in found.get(n, {})}
    if predictions:
        written.append(_scatter(predictions, folder / "latency-prediction.png"))
    return written


def _staircase(found: Mapping[str, Any], path: Path) -> Path:
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 4))
    curves = [name for name in found if name != "widths"]
    for name, colour in zip(curves, _COLOURS, strict=True):
        axis.plot(found["widths"], found[name], ".-", color=colour, label=name, linewidth=1.2)
    axis.set_xticks(range(0, 97, 16))
    axis.set_xlabel("channels")
    axis.set_ylabel("microseconds")
    axis.set_title("A 3×3 convolution on 16×16 positions, one thread")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return _save(figure, path)


def _scatter(predictions: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(predictions), figsize=(4.6 * len(predictions), 4.4))
    for axis, (name, found) in zip(
        axes if len(predictions) > 1 else [axes], predictions.items(), strict=True
    ):
        guesses, shares = zip(*found["points"], strict=True)
        ends = [0, 1.05 * max(*guesses, *shares)]
        axis.plot(ends, ends, color="#8d99ae", linewidth=1)
        axis.plot(guesses, shares, ".", color=_COLOURS[0])
        axis.set_xlim(ends)
        axis.set_ylim(ends)
        axis.set_xlabel("predicted share of the original's time")
        axis.set_ylabel("measured share")
        note = f"error {found['mean_error']:.1%}, Spearman {found['spearman']:.3f}"
        axis.set_title(f"{_TITLES[name]}\n{found['networks']} networks: {note}", fontsize=10)
    return _save(figure, path)


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - only where something is drawn

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    return pyplot


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def main() -> None:
    """Draws from a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("found", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    for path in draw(json.loads(given.found.read_text(encoding="utf-8")), given.folder):
        print(path)


if __name__ == "__main__":
    main()
