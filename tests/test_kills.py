"""Runs that are killed come to the same as one that nobody killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import Come, come, differences, moments, run, trial

EVALUATIONS = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Come:
    folder = tmp_path_factory.mktemp("whole")
    run(folder / "run", EVALUATIONS, folder / "scored.txt")
    return come(folder / "run")


@pytest.mark.parametrize(
    "moment", ["rename 3", pytest.param("statement 9", marks=pytest.mark.sweep)]
)
def test_a_killed_run_comes_to_the_same(tmp_path: Path, whole: Come, moment: str) -> None:
    found = trial(tmp_path, EVALUATIONS, whole, [moment])
    assert found.kills == 1
    assert found.survived, found


def test_a_second_process_comes_to_the_same(tmp_path: Path, whole: Come) -> None:
    run(tmp_path / "run", EVALUATIONS, tmp_path / "scored.txt")
    assert differences(whole, come(tmp_path / "run")) == ()


def test_a_run_that_came_to_something_else_is_seen(whole: Come) -> None:
    other = Come({**whole.result, "scored": []}, {**whole.hashes, "model.onnx": ""}, ())
    assert differences(whole, other) == ("scored", "model.onnx", "files")
    assert differences(whole, whole) == ()


def test_moments_are_drawn_by_the_seed() -> None:
    from random import Random  # noqa: PLC0415

    rngs = (Random(seed) for seed in (0, 0, 1))  # noqa: S311
    first, again, other = ([moments(20, 9.0, rng) for _ in range(50)] for rng in rngs)
    assert first == again != other
    assert {each[0].partition(" ")[0] for each in first} == {"time", "statement", "rename"}


@pytest.mark.sweep
def test_twenty_five_killed_runs_come_to_the_same() -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "25", "--seed", "1"]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
