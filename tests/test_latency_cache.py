from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.device.measure import Settings
from compressor.errors import RunError
from compressor.latency.cache import (
    Machine,
    Measured,
    Timed,
    read_measured,
    this_machine,
    write_measured,
)

MACHINE = Machine("a processor", "a runtime 1.0", "CPUExecutionProvider", 1)
MEASURED = Measured(MACHINE, 0.02, {"Conv 1x3": Timed(0.5, 0.4, 0.6)})


def test_what_was_written_is_read(tmp_path):
    assert read_measured(tmp_path, MACHINE) is None
    write_measured(tmp_path, MEASURED)
    assert read_measured(tmp_path, MACHINE) == MEASURED
    assert [p.name for p in tmp_path.iterdir()] == [MACHINE.file_name]


@pytest.mark.parametrize(
    "other", [{"device": "b"}, {"runtime": "a runtime 1.1"}, {"provider": "X"}, {"threads": 2}]
)
def test_each_machine_has_its_own_file(tmp_path, other):
    write_measured(tmp_path, MEASURED)
    assert read_measured(tmp_path, replace(MACHINE, **other)) is None


def test_a_file_under_anothers_name_is_refused(tmp_path):
    other = replace(MACHINE, threads=2)
    write_measured(tmp_path, MEASURED).rename(tmp_path / other.file_name)
    with pytest.raises(RunError, match=r"threads=1.*delete it"):
        read_measured(tmp_path, other)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("format", 99), ("format", None), ("reference_ms", 0), ("reference_ms", "1"),
        ("parts", []), ("parts", {"x": 1}), ("parts", {"x": {"ratio": 1.0}}),
        ("parts", {"x": {"ratio": -1.0, "low": -1.0, "high": 1.0}}),
        ("parts", {"x": {"ratio": 3.0, "low": 1.0, "high": 2.0}}),
        ("parts", {"x": {"ratio": 1e400, "low": 1.0, "high": 1e400}}),
        ("machine", None),
    ],
)  # fmt: skip
def test_nonsense_is_our_error(tmp_path, place, value):
    path = write_measured(tmp_path, MEASURED)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {place: value}))
    with pytest.raises(RunError, match="positive times of parts"):
        read_measured(tmp_path, MACHINE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary())
def test_any_bytes_are_read_or_refused(tmp_path, data):
    (tmp_path / MACHINE.file_name).write_bytes(data)
    with pytest.raises(RunError):
        read_measured(tmp_path, MACHINE)


def test_this_machine_says_what_a_time_depends_on():
    machine = this_machine(Settings(threads=2))
    assert machine.threads == 2
    assert machine.runtime.startswith("onnxruntime ")
    assert machine.device.strip()
    assert machine == this_machine(Settings(threads=2))
