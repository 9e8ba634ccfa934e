"""How good are the networks that a search finds, against other ways to spend the evaluations?

python -m benchmarks.search_quality --table FILE.npz [--json] [--plot FILE.png]

The file holds trained networks: `arch` [N, L], `acc` [N, R], `flops` [N] and perhaps `final` [N].
Every evaluation draws one of the R scores; what counts is `final`, or the mean of the R. The
regret is the best `final` in the band minus the `final` of the network that is returned. Bands
reach from 90 % of a limit to the limit; everything that is scored counts, repeats included.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.methods import METHODS
from benchmarks.support import environment
from benchmarks.tables import Table

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
EVALUATIONS = (25, 50, 100, 200)
FEW = 100  # evaluations up to which a cell counts in the geometric means
_SMALLEST = 50  # networks that a band must hold
_FLOOR = 0.01  # share of random's regret below which regrets are all the same

Task: TypeAlias = tuple[str, float, int]
"""Method, share of the largest cost, seed."""


@dataclass(frozen=True)
class Cell:
    """One band and one number of evaluations.

    Attributes:
        share: limit of the band as a share of the largest cost.
        networks: how many the band holds.
        evaluations: what every method may score.
        regrets: of each method, by seed.
    """

    share: float
    networks: int
    evaluations: int
    regrets: Mapping[str, Sequence[float]]

    def mean(self, method: str) -> float:
        """Mean regret."""
        return float(np.mean(self.regrets[method]))

    def error(self, method: str) -> float:
        """Standard error of the mean regret."""
        values = np.asarray(self.regrets[method])
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0

    def ratio(self, method: str, other: str) -> float | None:
        """Ratio of mean regrets, each at least a hundredth of random's; None if that has none."""
        floor = _FLOOR * self.mean("random")
        return max(self.mean(method), floor) / max(self.mean(other), floor) if floor > 0 else None


def measure(
    table: Table, methods: Sequence[str], seeds: int, counts: Sequence[int], jobs: int
) -> list[Cell]:
    """Runs every method on every band with every seed."""
    shares = [share for share in SHARES if len(table.band(share)) >= _SMALLEST]
    tasks = [
        (method, share, seed) for share in shares for method in methods for seed in range(seeds)
    ]
    found = dict(zip(tasks, _progress(_run_all(table, tasks, counts, jobs), tasks), strict=True))
    return [
        Cell(
            share,
            len(table.band(share)),
            count,
            {m: [found[m, share, seed][place] for seed in range(seeds)] for m in methods},
        )
        for share in shares
        for place, count in enumerate(counts)
    ]


def regrets(table: Table, counts: Sequence[int], task: Task) -> list[float]:
    """The regret of one method, band and seed after each number of evaluations."""
    method, share, seed = task
    best = float(table.final[table.band(share)].max())
    rows = [table.keys.row(network) for network in METHODS[method](table, share, counts, seed)]
    return [best - float(table.final[row]) for row in rows]


def summary(cells: Sequence[Cell], methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """Means over the cells with few evaluations, geometric and plain, and the worst of all."""
    result: dict[str, dict[str, float]] = {}
    few = [cell for cell in cells if cell.evaluations <= FEW]
    for method in methods:
        entry = {f"vs_{o}": _geometric(c.ratio(method, o) for c in few) for o in methods}
        # cells without regret, where ratios are a matter of the floor, hardly count in this one
        shares = [r for c in few if (r := c.ratio(method, "random")) is not None]
        entry["mean_vs_random"] = float(np.mean(shares)) if shares else math.nan
        every = [r for c in cells if (r := c.ratio(method, "random")) is not None]
        entry["worst_vs_random"] = max(every, default=math.nan)
        entry["vs_random_all"] = _geometric(every)
        del entry[f"vs_{method}"]
        result[method] = entry
    return result


def report(path: Path, table: Table, cells: Sequence[Cell], seeds: int) -> dict[str, object]:
    """Everything as one JSON object."""
    methods = list(cells[0].regrets) if cells else []
    return {
        "table": path.name,
        "layers": len(table.keys.sizes),
        "options": list(table.keys.sizes),
        "networks": len(table.final),
        "seeds": seeds,
        "floor": _FLOOR,
        "cells": [
            {
                "share": cell.share,
                "networks": cell.networks,
                "evaluations": cell.evaluations,
                "methods": {
                    method: {
                        "regret": cell.mean(method),
                        "standard_error": cell.error(method),
                        "ratio_to_random": cell.ratio(method, "random"),
                    }
                    for method in methods
                },
            }
            for cell in cells
        ],
        "summary": summary(cells, methods),
        "environment": environment(),
    }


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Regret over evaluations, a panel for each band; bars are standard errors."""
    import matplotlib  # noqa: PLC0415 - only where a plot is asked for

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of the backend

    shares = sorted({cell.share for cell in cells})
    figure, axes = pyplot.subplots(
        1, len(shares), figsize=(3.2 * len(shares), 3.4), sharex=True, squeeze=False
    )
    for axis, share in zip(axes[0], shares, strict=True):
        row = [cell for cell in cells if cell.share == share]
        counts = [cell.evaluations for cell in row]
        for method in row[0].regrets:
            means, errors = zip(*((c.mean(method), c.error(method)) for c in row), strict=True)
            width = 2.4 if method == "guided" else 1.2
            axis.errorbar(counts, means, yerr=errors, label=method, linewidth=width, capsize=2)
        axis.set_title(f"{share:.0%} of the cost, {row[0].networks} networks", fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlabel("networks scored")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mean regret")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--jobs", type=int, default=1, help="processes; the result is the same")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    methods = list(dict.fromkeys(["random", *options.methods]))
    table = Table.load(options.table)
    cells = measure(table, methods, options.seeds, sorted(options.evaluations), options.jobs)
    if options.plot:
        plot(cells, options.plot)
    if options.json:
        print(json.dumps(report(options.table, table, cells, options.seeds), indent=1))
    else:
        _print(cells, methods)


def _print(cells: Sequence[Cell], methods: Sequence[str]) -> None:
    print("mean regret ± standard error (ratio to random)")
    print("band   nets  eval" + "".join(f"{method:>22}" for method in methods))
    for cell in cells:
        line = f"{cell.share:4.0%} {cell.networks:6d} {cell.evaluations:5d}"
        for method in methods:
            ratio = cell.ratio(method, "random")
            shown = "-" if ratio is None else f"{ratio:.2f}"
            line += f"{cell.mean(method):9.3f} ± {cell.error(method):.3f} ({shown})".rjust(22)
        print(line)
    print(f"\ngeometric means of ratios up to {FEW} evaluations; worst of all cells")
    for method, entry in summary(cells, methods).items():
        print(f"{method:>10}: " + ", ".join(f"{key} {value:.3f}" for key, value in entry.items()))


def _run_all(
    table: Table, tasks: Sequence[Task], counts: Sequence[int], jobs: int
) -> Iterable[list[float]]:
    run = partial(regrets, table, counts)
    if jobs == 1:
        yield from map(run, tasks)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run, tasks, chunksize=5)


def _progress(results: Iterable[list[float]], tasks: Sequence[Task]) -> Iterable[list[float]]:
    """Tells on standard error where it is, once for each method and band."""
    start = time.perf_counter()
    for place, (result, task) in enumerate(zip(results, tasks, strict=True)):
        if place + 1 == len(tasks) or tasks[place + 1][:2] != task[:2]:
            seconds = time.perf_counter() - start
            print(
                f"  {place + 1}/{len(tasks)} {task[0]} {task[1]:.0%} {seconds:.0f} s",
                file=sys.stderr,
            )
        yield result


def _geometric(ratios: Iterable[float | None]) -> float:
    logs = [math.log(ratio) for ratio in ratios if ratio is not None]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


if __name__ == "__main__":
    main()
