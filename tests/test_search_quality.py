from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search_quality import Cell, summary
from benchmarks.tables import NoisyScore, Table


def write_table(path: Path, shuffled: bool = False, **more: np.ndarray) -> Path:
    """Four layers of three options with values 1..3, additive scores, products as costs."""
    arch = np.indices((3, 3, 3, 3)).reshape(4, -1).T + 1
    flops = (arch[:, 1:] * arch[:, :-1]).sum(axis=1) * 100
    acc = (np.log(arch) * [1, 2, 3, 4]).sum(axis=1)[:, None] + [[0.0, 0.02, -0.02]]
    if shuffled:
        arch = np.array([9, 2, 5, 1])[arch]
    np.savez(path, arch=arch.astype(np.uint8), acc=acc, flops=flops, **more)
    return path


def test_options_are_ordered_by_their_cost(tmp_path: Path) -> None:
    plain = Table.load(write_table(tmp_path / "a.npz"))
    other = Table.load(write_table(tmp_path / "b.npz", shuffled=True))
    assert (plain.keys.networks == other.keys.networks).all()
    assert other.cost.monotone
    assert other.cost((2, 2, 2, 2)) == 2700
    assert other.cost.many(np.array([[0, 0, 0, 0], [2, 2, 2, 2]])).tolist() == [300, 2700]


def test_what_counts_is_final_where_there_is_one(tmp_path: Path) -> None:
    mean = Table.load(write_table(tmp_path / "a.npz"))
    np.testing.assert_allclose(mean.final, mean.scores.mean(axis=1))
    other = Table.load(write_table(tmp_path / "b.npz", final=np.arange(81.0)))
    assert other.final.tolist() == list(range(81))


def test_networks_that_are_missing_cost_infinitely_much(tmp_path: Path) -> None:
    with np.load(write_table(tmp_path / "a.npz")) as data:
        part = {name: data[name][3:] for name in data.files}
    np.savez(tmp_path / "part.npz", **part)
    table = Table.load(tmp_path / "part.npz")
    assert not table.cost.monotone
    assert table.cost((0, 0, 0, 0)) == float("inf")
    assert table.cost.many(np.array([[0, 0, 0, 0], [2, 2, 2, 2]])).tolist() == [np.inf, 2700]
    with pytest.raises(LookupError):
        NoisyScore(table, 0)((0, 0, 0, 0))


def test_scores_are_drawn_from_those_of_the_network(tmp_path: Path) -> None:
    table = Table.load(write_table(tmp_path / "a.npz"))
    score = NoisyScore(table, 0)
    drawn = {score((1, 1, 1, 1)) for _ in range(50)}
    assert drawn == set(table.scores[table.keys.row((1, 1, 1, 1))].tolist())


def test_ratios_have_a_floor_and_none_where_random_has_no_regret() -> None:
    cells = [
        Cell(0.5, 60, 25, {"random": [1.0, 3.0], "guided": [0.0, 0.0], "tpe": [1.0, 1.0]}),
        Cell(0.5, 60, 200, {"random": [0.0, 0.0], "guided": [0.0, 0.0], "tpe": [0.0, 0.0]}),
    ]
    assert cells[0].ratio("guided", "random") == pytest.approx(0.01)
    assert cells[0].ratio("guided", "tpe") == pytest.approx(0.02)
    assert cells[1].ratio("guided", "random") is None
    assert cells[0].error("random") == pytest.approx(1.0)
    found = summary(cells, ["random", "guided", "tpe"])["guided"]
    assert found["vs_random"] == pytest.approx(0.01)
    assert found["worst_vs_random"] == pytest.approx(0.01)
    assert found["mean_vs_random"] == pytest.approx(0.01)
    assert found["vs_tpe"] == pytest.approx(0.02)


def test_prints_one_json_object(tmp_path: Path) -> None:
    arch = np.indices((3, 3, 3, 3, 3)).reshape(5, -1).T
    rng = np.random.default_rng(0)
    acc = arch @ [5, 4, 3, 2, 1.0] + rng.normal(0, 0.1, (3, 243))
    np.savez(tmp_path / "t.npz", arch=arch, acc=acc.T, flops=1 + arch.sum(axis=1))
    command = [
        sys.executable, "-m", "benchmarks.search_quality", "--table", str(tmp_path / "t.npz"),
        "--seeds", "3", "--evaluations", "25", "--methods", "guided", "evolution", "published",
        "--json", "--jobs", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert {cell["evaluations"] for cell in report["cells"]} == {25}
    assert all(cell["networks"] >= 50 for cell in report["cells"])
    assert set(report["cells"][0]["methods"]) == {"random", "guided", "evolution", "published"}
    assert report["summary"]["guided"]["vs_random"] < 0.5
    assert {"vs_random", "vs_evolution", "worst_vs_random"} <= report["summary"]["guided"].keys()


def test_optuna_proposes_new_networks_of_the_band(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `benchmarks` is not installed")
    from benchmarks.rivals import RIVALS  # noqa: PLC0415 - needs optuna

    table = Table.load(write_table(tmp_path / "a.npz"))
    for run in RIVALS.values():
        history = run(table, 0.7, 12, 0)
        assert history == run(table, 0.7, 12, 0)
        networks = [network for network, _ in history]
        assert 3 < len(set(networks)) == len(networks)
        assert {table.keys.row(n) for n in networks} <= set(table.band(0.7).tolist())
