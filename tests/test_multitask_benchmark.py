"""What `benchmarks.multitask` writes down, and how it compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask import settings_of
from benchmarks.multitask_tables import Report, tables
from compressor.multitask.rounds import Rounds

TOP1 = {"alone": (90.0, 92.0, 94.0), "separate": (89.0, 92.0, 92.0), "rounds": (91.0, 93.0, 92.0)}


def report(path: Path) -> Report:
    found = Report(path, {"finetune": 4})
    found.originals = {"a": {"top1": 95.0, "loss": 2.0, "validation": 1.0}}
    for way, values in TOP1.items():
        for seed, value in enumerate(values):
            task: dict[str, Any] = {"top1": value, "loss": value / 10, "validation": 3.0}
            seconds = {"training": 10.0, "transfer": 1.0}
            found.add(seed, way, {"seconds": seconds, "tasks": {"a": task}})
    for seed in range(3):
        found.searched(seed, "alone", 20.0)
        found.searched(seed, "shared", 30.0)
    return found


def test_differences_are_paired_by_seed_with_their_standard_errors(tmp_path: Path) -> None:
    lines = list(tables(report(tmp_path / "results.json"), [0, 1, 2], list(TOP1)))
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line}
    assert "95.00" in rows["original"]
    # 1, 0 and 2 points less: mean 1, standard deviation 1, of three
    assert "| -1.00 ± 0.58 |" in rows["separate − alone"]
    assert "| +1.00 ± 0.58 |" in rows["rounds − separate"]
    assert "| +0.050 ± 0.029 |" in rows["rounds − separate"]
    assert any(line == "| rounds | 30 | 10 | 1 |" for line in lines)


def test_results_come_back_and_those_of_other_settings_do_not(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    before = report(path)
    again = Report.opened(path, {"finetune": 4})
    assert again.data() == before.data()
    assert again.of(1, "rounds") == before.of(1, "rounds")
    assert again.of(3, "rounds") is None
    assert again.total(2, "alone") == pytest.approx(9.4 / 2)
    with pytest.raises(SystemExit):
        Report.opened(path, {"finetune": 5})


def test_ways_are_read() -> None:
    assert settings_of("alone", 2) == settings_of("separate", 2) == Rounds()
    assert settings_of("rounds", 2) == Rounds(2)
    assert settings_of("features:0.5", 2) == Rounds(2, "features", 0.5)
    assert settings_of("matching:2:0.1", 3) == Rounds(3, "matching", 2.0, 0.1)
