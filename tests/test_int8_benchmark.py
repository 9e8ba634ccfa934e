"""Every part of the command works on a tiny network, and its rows are the files that they name."""

from __future__ import annotations

import pytest

from benchmarks.int8 import DELIVERED, ROWS, Bench
from compressor.deploy import int8
from compressor.device.measure import Settings
from compressor.device.timing import Schedule
from tests.test_pipeline import EXAMPLE, data, model


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(model(), EXAMPLE, data(0), data(1), schedule=Schedule(rounds=6, seconds=0.1))


@pytest.mark.parametrize("part", ROWS)
def test_every_row_is_a_file_of_its_own_that_was_judged(bench: Bench, part: str) -> None:
    rows = bench.part(part)
    assert [name for name in rows if name != "float"] == list(ROWS[part])
    files = {bench.made(change).data for change in ROWS[part].values()}
    assert len(files) >= len(ROWS[part]) - 2  # the three smallest cuts of few images are the same
    for name in ROWS[part]:
        assert rows[name]["agreement"] <= 0
        assert 0 <= rows[name]["top1"] <= 1
        assert rows[name]["explained"] <= 1


def test_without_a_change_the_file_is_the_delivered_one(bench: Bench, tmp_path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(bench.source)
    delivered = int8.quantised_network(path, data(0), Settings())
    assert bench.made(DELIVERED) == delivered


def test_worse_files_are_made_whatever_the_floor_is_and_it_stays(bench: Bench) -> None:
    worse = ROWS["floor"]["ranges cut at 90 %"]
    before = int8.FLOOR
    assert bench.made(worse).explained < bench.made(DELIVERED).explained
    assert before == int8.FLOOR


def test_times_are_shares_of_the_float_files(bench: Bench) -> None:
    rows = bench.part("timing")
    assert list(rows) == ["float", "as delivered", "made up"]
    assert rows["float"]["time"] == 1
    assert all(row["time_low"] <= row["time"] <= row["time_high"] for row in rows.values())
