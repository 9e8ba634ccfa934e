from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.assumptions import agreement, bucketed, explained, noise
from benchmarks.tables import TIGHTNESS, Table
from tests.test_search_quality import write_table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.load(write_table(tmp_path / "t.npz"))


def _noisy(path: Path, seed: int = 0) -> Table:
    arch = np.indices((3, 3, 3, 3)).reshape(4, -1).T
    acc = np.random.default_rng(seed).normal(size=(81, 1))
    np.savez(path, arch=arch, acc=acc, flops=10 + arch @ [4, 3, 2, 1])
    return Table.load(path)


def test_additive_scores_are_explained_by_single_options(table: Table) -> None:
    assert explained(table) == pytest.approx((1.0, 1.0))
    assert explained(table, 0.5) == pytest.approx((1.0, 1.0))


def test_noise_is_the_variance_that_repeats_show(tmp_path: Path) -> None:
    arch = np.indices((3,) * 7).reshape(7, -1).T
    rng = np.random.default_rng(0)
    acc = 2 * rng.normal(size=(len(arch), 1)) + rng.normal(size=(len(arch), 4))
    np.savez(tmp_path / "r.npz", arch=arch, acc=acc, flops=1 + arch.sum(axis=1))
    table = Table.load(tmp_path / "r.npz")
    assert noise(table) == pytest.approx((1 / 4) / (2**2 + 1 / 4), rel=0.1)
    assert noise(_noisy(tmp_path / "n.npz")) is None


def test_noise_is_not_explained(tmp_path: Path) -> None:
    single, pairs = explained(_noisy(tmp_path / "n.npz"))
    assert 0 < single < pairs < 0.7


def test_products_of_neighbours_are_explained_by_pairs(tmp_path: Path) -> None:
    arch = np.indices((3, 3, 3)).reshape(3, -1).T
    np.savez(
        tmp_path / "p.npz",
        arch=arch,
        acc=(arch[:, 0] * arch[:, 1])[:, None].astype(float),
        flops=1 + arch.sum(axis=1),
    )
    single, pairs = explained(Table.load(tmp_path / "p.npz"))
    assert single < 0.9
    assert pairs == pytest.approx(1.0)


def test_pairs_are_counted_as_by_hand(tmp_path: Path) -> None:
    table = _noisy(tmp_path / "n.npz")
    share, high = 0.8, table.high(0.8)
    wanted: list[float | None] = []
    for depth in (1, 2, 3):
        seen = []
        for prefix in itertools.product(range(3), repeat=depth):
            judged = (*prefix, *[2] * (4 - depth))
            rows = [
                table.keys.row((*prefix, *rest))
                for rest in itertools.product(range(3), repeat=4 - depth)
            ]
            inside = [r for r in rows if TIGHTNESS * high <= table.costs[r] <= high]
            if inside:
                row = table.keys.row(judged)
                place = int(table.costs[row] / table.costs.max() * 100)
                seen.append((place, table.final[row], max(table.final[r] for r in inside)))
        pairs = [
            (a[1] - b[1]) * (a[2] - b[2]) > 0
            for a, b in itertools.combinations(seen, 2)
            if a[0] == b[0] and a[2] != b[2]
        ]
        wanted.append(sum(pairs) / len(pairs) if pairs else None)
    assert agreement(table, share) == pytest.approx(wanted)
    assert any(value is not None for value in wanted)


def test_nothing_is_lost_with_many_buckets_and_something_with_one(tmp_path: Path) -> None:
    lost = 0.0
    for seed in range(4):
        table = _noisy(tmp_path / f"{seed}.npz", seed)
        regret, scored = bucketed(table, 0.8, 1000, 1000)
        assert regret == 0
        coarse, few = bucketed(table, 0.8, 1, 1)
        assert 0 < few < scored <= 1
        lost += coarse
    assert lost > 0


def test_prints_tables_or_one_json_object(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.npz")
    command = [sys.executable, "-m", "benchmarks.assumptions", "--table", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for word in ("layers:", "buckets:", "effects:", "k=3 H=1000"):
        assert word in text
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["effects"]["all"] == pytest.approx([1.0, 1.0, 0.0], abs=1e-3)


def test_an_incomplete_table_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", arch=[[0, 0], [1, 1]], acc=[[1.0], [2.0]], flops=[1.0, 2.0])
    command = [
        sys.executable, "-m", "benchmarks.assumptions", "--table", str(tmp_path / "t.npz"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "complete table" in done.stderr) == (2, True)
