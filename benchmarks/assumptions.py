"""Do the assumptions hold that the search rests on? Counted on a table of trained networks.

python -m benchmarks.assumptions --table FILE.npz [--json]

The table (see `benchmarks.search_quality`) must hold every combination of options. Scores are the
means of all repeats, so that noise is not mistaken for a broken assumption.

- *layers*: of two partial choices of about equal cost (100 ranges), judged with the undecided
  layers at their most expensive option as the paper judges them, how often is the better one also
  the one whose best completion in the band is better? Half of the time would be chance.
- *buckets*: the regret of the published search without a limit on its evaluations, by the number
  of buckets, and the share of all networks that it scores. All its regret comes from bucketing.
- *effects*: the share of the variance of the scores that effects of single options explain, that
  these and interactions of neighbouring layers explain, and that is noise of the mean scores.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_quality import SHARES
from benchmarks.tables import TIGHTNESS, Table
from compressor.cost import Limit
from compressor.search.layer_nas import SearchSettings, layer_nas

BUCKETS = (10, 30, 100, 1000)
KEPT = (1, 3)
_RANGES = 100
Floats = NDArray[np.float64]


def agreement(table: Table, share: float) -> list[float | None]:
    """For each layer but the last, the share of pairs that are ordered rightly."""
    sizes = table.keys.sizes
    scores, costs = _grid(table, table.final), _grid(table, table.costs)
    high = table.high(share)
    band = (costs <= high) & (costs >= TIGHTNESS * high)
    reached = np.where(band, scores, -np.inf)
    found = []
    for depth in range(1, len(sizes)):
        rest = tuple(range(depth, len(sizes)))
        best = reached.max(axis=rest).ravel()
        last = (..., *[-1] * len(rest))
        judged, cost = scores[last].ravel(), costs[last].ravel()
        inside = np.isfinite(best)
        ranges = np.floor(cost / costs.max() * _RANGES)
        found.append(_concordance(judged[inside], best[inside], ranges[inside]))
    return found


def bucketed(table: Table, share: float, buckets: int, kept: int) -> tuple[float, float]:
    """Regret of the published search that tries everything, and the share of networks scored."""
    result = layer_nas(
        sizes=table.keys.sizes,
        limits=[Limit(table.cost, table.high(share))],
        score=lambda network: float(table.final[table.keys.row(network)]),
        settings=SearchSettings("published", buckets, kept, tightness=TIGHTNESS),
        evaluations=10 * len(table.final),
    )
    best = float(table.final[table.band(share)].max())
    return best - result.best.score, result.evaluations / len(table.final)


def explained(table: Table, share: float | None = None) -> tuple[float, float]:
    """Shares of the variance that single options, and neighbouring pairs too, explain."""
    rows = _rows(table, share)
    networks, scores = table.keys.networks[rows], table.final[rows]
    single = [networks[:, [i]] == np.arange(n) for i, n in enumerate(table.keys.sizes)]
    pairs = [
        (a[:, :, None] & b[:, None, :]).reshape(len(rows), -1)
        for a, b in itertools.pairwise(single)
    ]
    return _fit(single, scores), _fit([*single, *pairs], scores)


def noise(table: Table, share: float | None = None) -> float | None:
    """Share of the variance of the mean scores that is noise; None without repeats."""
    scores = table.scores[_rows(table, share)]
    if scores.shape[1] < 2:
        return None
    return float(scores.var(axis=1, ddof=1).mean() / scores.shape[1] / scores.mean(axis=1).var())


def _rows(table: Table, share: float | None) -> NDArray[np.intp]:
    return np.arange(len(table.final)) if share is None else table.band(share)


def _grid(table: Table, values: Floats) -> Floats:
    grid = np.empty(table.keys.sizes)
    grid[tuple(table.keys.networks.T)] = values
    return grid


def _concordance(one: Floats, other: Floats, groups: Floats) -> float | None:
    """Share of the pairs within groups that both order alike; None where there is no pair."""
    right = pairs = 0
    for group in np.unique(groups):
        mine = groups == group
        product = np.sign(one[mine][:, None] - one[mine]) * np.sign(
            other[mine][:, None] - other[mine]
        )
        right += int((product > 0).sum())
        pairs += int((product != 0).sum())
    return right / pairs if pairs else None


def _fit(parts: Sequence[NDArray[np.bool_]], scores: Floats) -> float:
    marks = np.concatenate(parts, axis=1).astype(np.float64)
    rest = scores - scores.mean()
    weights = np.linalg.lstsq(marks - marks.mean(axis=0), rest, rcond=None)[0]
    misses = rest - (marks - marks.mean(axis=0)) @ weights
    return 1 - float((misses**2).sum() / (rest**2).sum())


def report(table: Table) -> dict[str, object]:
    """Everything as one JSON object."""
    return {
        "layers": {share: agreement(table, share) for share in SHARES},
        "buckets": [
            {"share": s, "buckets": b, "kept": k, "regret": regret, "scored": scored}
            for s in SHARES
            for k in KEPT
            for b in BUCKETS
            for regret, scored in [bucketed(table, s, b, k)]
        ],
        "effects": {
            str(share or "all"): [*explained(table, share), noise(table, share)]
            for share in (None, *SHARES)
        },
    }


def _lines(table: Table) -> Iterator[str]:
    yield "layers: pairs of equal cost that the paper's way of judging orders rightly"
    for share in SHARES:
        shown = ["–" if a is None else f"{a:.0%}" for a in agreement(table, share)]
        yield f"{share:5.0%}  " + "  ".join(shown)
    yield "\nbuckets: regret (share of all networks scored) of the exhaustive published search"
    names = [(k, b) for k in KEPT for b in BUCKETS]
    yield "       " + "".join(f"k={k} H={b}".rjust(16) for k, b in names)
    for share in SHARES:
        cells = [bucketed(table, share, b, k) for k, b in names]
        yield f"{share:5.0%}  " + "".join(f"{r:.3f} ({s:.1%})".rjust(16) for r, s in cells)
    yield "\neffects: variance explained by single options, and with neighbouring pairs; noise"
    for part in (None, *SHARES):
        single, pairs = explained(table, part)
        name = "all" if part is None else f"{part:.0%}"
        random = noise(table, part)
        shown = "–" if random is None else f"{random:.1%}"
        yield f"{name:>5}  {single:.1%}  {pairs:.1%}  {shown}"


def main() -> None:
    """Prints three tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = Table.load(options.table)
    if not table.keys.complete:
        parser.error(f"{options.table} lacks combinations of options; give a complete table")
    if options.json:
        print(json.dumps(report(table), indent=1))
    else:
        print("\n".join(_lines(table)))


if __name__ == "__main__":
    main()
