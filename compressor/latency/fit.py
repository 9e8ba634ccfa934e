"""From the times of parts to the time of the whole: a sum, corrected by a few whole networks.

The parts of a network run after each other, but not as they do alone: their weights and inputs
come from further away, and calling an operator costs less than calling a model. The correction is
`constant + sum over kinds of scale[kind] * time of the parts of that kind`. All scales are drawn
towards one common scale, so that a dozen networks decide them. Knows no torch and no ONNX.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import MeasureError

Floats = NDArray[np.float64]

PULLS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""How strongly scales are drawn to the common one; which, is decided on networks left out."""

_FEWEST = 4  # networks without which nothing can be said about those left out


@dataclass(frozen=True)
class Correction:
    """How the times of parts become the time of a network.

    Attributes:
        scales: factor on the time of each kind of part.
        constant: what every network takes besides.
        error: mean relative error on networks that were left out of the fit.
        spread: standard deviation of that error.
        networks: number of networks that it was fitted to.
    """

    scales: tuple[float, ...]
    constant: float
    error: float
    spread: float
    networks: int

    def of(self, sums: Floats) -> Floats:
        """Times of networks `[N]` whose parts take `sums` `[N, K]` by kind."""
        times: Floats = sums @ np.array(self.scales) + self.constant
        return times


def corrected(sums: Floats, times: Floats) -> Correction:
    """The correction that fits measured networks.

    Relative errors count, so that small networks are as right as large ones. Neither a scale nor
    the constant is below 0. The pull to the common scale is the one that predicts networks best
    that were left out, one at a time.

    Args:
        sums: time of all parts of each kind `[N, K]`, in any unit.
        times: time of the whole networks `[N]`.

    Raises:
        MeasureError: fewer than four networks, or a time that is not a positive number.
    """
    if len(times) < _FEWEST or not (np.isfinite(times).all() and (times > 0).all()):
        raise MeasureError(
            f"parts are fitted to at least {_FEWEST} networks that take some time, but got "
            f"{len(times)}: {times.tolist()}"
        )
    misses = {pull: _misses(sums, times, pull) for pull in PULLS}
    pull = min(PULLS, key=lambda p: (float((misses[p] ** 2).mean()), -p))
    solved = _solved(sums, times, pull)
    spread = float(np.sqrt((misses[pull] ** 2).mean()))
    error = float(np.abs(misses[pull]).mean())
    scales = tuple(float(s) for s in solved[:-1])
    return Correction(scales, float(solved[-1]), error, spread, len(times))


def shrunk(columns: Floats, target: Floats, towards: Floats, pulls: Floats) -> Floats:
    """Least squares whose coefficients `[K]` are drawn `towards` values, each with its own pull."""
    matrix = columns.T @ columns + np.diag(pulls)
    change = np.linalg.solve(matrix, columns.T @ (target - columns @ towards))
    found: Floats = towards + change
    return found


def _misses(sums: Floats, times: Floats, pull: float) -> Floats:
    """Relative error of each network, predicted by a fit to the others."""
    found = []
    for place in range(len(times)):
        others = np.arange(len(times)) != place
        solved = _solved(sums[others], times[others], pull)
        found.append(float(np.append(sums[place], 1.0) @ solved) / times[place] - 1)
    return np.array(found)


def _solved(sums: Floats, times: Floats, pull: float) -> Floats:
    """Scales and the constant, none below 0: the best of all sets that may be above it."""
    total = sums.sum(axis=1) / times
    common = float(total.sum() / (total @ total)) if total.any() else 0.0
    columns = np.column_stack([sums, np.ones(len(times))]) / times[:, None]
    towards = np.append(np.full(sums.shape[1], common), 0.0)
    # The pull is measured in networks: each kind against what the whole takes on average.
    pulls = np.append(np.full(sums.shape[1], pull * (total @ total) / len(total)), _SLACK)
    best: tuple[float, Floats] | None = None
    for number in range(len(towards) + 1):
        for fixed in itertools.combinations(range(len(towards)), number):
            solved = _with_zeros(columns, towards, pulls, fixed)
            if (solved < 0).any():
                continue
            loss = float(((columns @ solved - 1) ** 2).sum() + pulls @ (solved - towards) ** 2)
            if best is None or loss < best[0]:
                best = loss, solved
    assert best is not None  # noqa: S101  (with all fixed at 0 nothing is below 0)
    return best[1]


_SLACK = 1e-9  # keeps the constant's column solvable where it repeats another


def _with_zeros(columns: Floats, towards: Floats, pulls: Floats, fixed: tuple[int, ...]) -> Floats:
    free = [place for place in range(len(towards)) if place not in fixed]
    solved = np.zeros(len(towards))
    if free:
        ones = np.ones(len(columns))
        solved[free] = shrunk(columns[:, free], ones, towards[free], pulls[free])
    return solved
