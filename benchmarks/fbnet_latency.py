"""Predicts a device's latencies of 5,000 FBNet networks from 100 that were measured on it.

The model is that of `compressor.latency.fit`: a sum over the layers of what each option takes, and
sums per kind of work that many layers share; all coefficients drawn towards 0, how strongly is
decided on networks left out. Here no operator can be timed alone, so that the table itself is
learnt from the networks. Layers of equal shapes share their rows, as equal operators do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support import spearman
from compressor.latency.fit import Floats, shrunk

MEASURED = 100
_PULLS = tuple(10.0 ** np.arange(-4, 4, 0.5))
_EASE = (1.0, 0.2, 0.1)  # of an option in one layer, in any layer, of a kind of work: pull on each
# The macro-architecture of FBNet: edge of the input, channels before and after, stride.
_SHAPES = (
    (112, 16, 16, 1),
    (112, 16, 24, 2), *[(56, 24, 24, 1)] * 3,
    (56, 24, 32, 2), *[(28, 32, 32, 1)] * 3,
    (28, 32, 64, 2), *[(14, 64, 64, 1)] * 3,
    (14, 64, 112, 1), *[(14, 112, 112, 1)] * 3,
    (14, 112, 184, 2), *[(7, 184, 184, 1)] * 3,
    (7, 184, 352, 1),
)  # fmt: skip


def work(shape: tuple[int, int, int, int], option: str) -> list[float]:
    """Kinds of work that an option is in a layer.

    Multiply-adds of the expansion, the depthwise convolution and the projection; elements between
    them, of the output, and those shuffled; operators.
    """
    edge, before, after, stride = shape
    out = edge // stride
    if option == "skip":
        same = stride == 1 and before == after
        return [0.0] * 7 if same else [0, 0, before * after * out**2, 0, after * out**2, 0, 1]
    kernel, groups = int(option[1]), 2 if option.endswith("g2") else 1
    middle = before * int(option[4])
    return [
        before * middle * edge**2 / groups,
        kernel**2 * middle * out**2,
        middle * after * out**2 / groups,
        middle * (edge**2 + out**2),
        after * out**2,
        (groups - 1) * (middle * edge**2 + after * out**2),
        3,
    ]


def features(networks: np.ndarray, options: list[str]) -> Floats:
    """What a network's latency is a sum of, `[N, F]`, divided by how hard it is pulled to 0."""
    marks = np.eye(len(options))[networks]
    shapes = list(dict.fromkeys(_SHAPES))
    place = np.array([shapes.index(shape) for shape in _SHAPES])
    table = np.stack([marks[:, place == i].sum(axis=1) for i in range(len(shapes))], axis=1)
    kinds = np.array([[work(shape, o) for o in options] for shape in _SHAPES])
    sums = np.einsum("nlo,lok->nk", marks, kinds / kinds.std(axis=(0, 1)))
    blocks = (table.reshape(len(networks), -1), marks.sum(axis=1), sums)
    return np.concatenate([b / np.sqrt(e) for b, e in zip(blocks, _EASE, strict=True)], axis=1)


def predicted(known: Floats, times: Floats, every: Floats) -> Floats:
    """Latencies of all networks from those of a few; relative errors count."""
    middle, weights = known.mean(axis=0), 1 / times
    columns = np.column_stack([known - middle, np.ones(len(known))]) * weights[:, None]
    target, zeros = np.ones(len(times)), np.zeros(columns.shape[1])
    losses = {}
    for pull in _PULLS:
        pulls = np.append(np.full(len(zeros) - 1, pull), 1e-12)
        inside = columns @ np.linalg.solve(columns.T @ columns + np.diag(pulls), columns.T)
        left_out = (target - inside @ target) / (1 - np.diag(inside))
        losses[float((left_out**2).mean())] = pulls
    found = shrunk(columns, target, zeros, losses[min(losses)])
    return (every - middle) @ found[:-1] + found[-1]


def fbnet(path: Path, seeds: int = 3) -> dict[str, Any]:
    """Spearman and mean relative error on the networks not measured, for each device."""
    data = np.load(path)
    every = features(data["arch"].astype(np.int64), [str(o) for o in data["ops"]])
    found: dict[str, Any] = {}
    for column, device in enumerate(data["devices"]):
        times = data["lat"][:, column].astype(np.float64)
        ranks, errors = [], []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(times))
            known, rest = order[:MEASURED], order[MEASURED:]
            guess = predicted(every[known], times[known], every[rest])
            ranks.append(spearman(guess, times[rest]))
            errors.append(float(np.abs(guess / times[rest] - 1).mean()))
        found[str(device)] = {"spearman": ranks, "error": errors}
    return found
