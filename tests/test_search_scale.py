from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.chains import chain
from benchmarks.search_scale import Run, exponent, exponents, recombination, search


def test_a_power_law_has_its_exponent() -> None:
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    runs = [Run("guided", (9, n, 5), 4 * n, 0.1 * n**2, 7.0) for n in (2, 4, 8)]
    found = exponents(runs, "options")
    assert found == pytest.approx({"seconds": 2, "memory": 0, "evaluations": 1})
    assert "evaluations" not in exponents([recombination((4, 3, n), paired=False) for n in (9, 30)],
                                          "buckets")  # fmt: skip


def test_a_chain_costs_what_its_convolutions_do() -> None:
    problem = chain(4, 2)
    positions = [1024, 256, 64, 16]
    assert problem.cost((1, 1, 1, 1)) == 9 * (3 * 16 * 1024 + 16 * 16 * sum(positions[1:])) + 160
    assert problem.cost((0, 1, 1, 1)) == problem.cost((1, 1, 1, 1)) - 9 * 8 * (3 * 1024 + 16 * 256)
    assert problem.limit.high == problem.cost((1, 1, 1, 1)) / 2
    assert problem.score((1, 1, 1, 1)) > problem.score((0, 0, 0, 0))


def test_a_search_is_measured_without_its_scores() -> None:
    run = search("guided", (5, 3, 20), 12)
    assert run.evaluations == 12
    assert 0 < run.seconds == 12 * run.overhead
    assert 0 < run.mebibytes < 50


def test_without_a_number_of_evaluations_the_published_form_tries_everything() -> None:
    few, many = (search("published", (16, 4, n), None).evaluations for n in (5, 20))
    assert 1.5 * few < many <= 16 * 4 * 20


def test_prints_one_json_object() -> None:
    command = [sys.executable, "-m", "benchmarks.search_scale", "--largest", "30"]
    command += ["--evaluations", "8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["goal_seconds"] == pytest.approx(0.005)
    assert {tuple(run["size"]) for run in report["searches"]} == {(30, 8, 100)}
    assert all(run["overhead"] > 0 for run in report["searches"])
    growth = report["growth"]["published, buckets"]
    assert growth["evaluations"] > 0
    assert growth["runs"][-1]["evaluations"] <= 30 * 6 * 80
