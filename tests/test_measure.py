from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from compressor.device import agent, courier
from compressor.device.job import OPTIMISATIONS, Job
from compressor.device.local import LocalDevice
from compressor.device.measure import (
    Settings,
    create_session,
    measure,
    measure_fully,
    random_inputs,
    run_session,
    time_in_turns,
)
from compressor.device.timing import Schedule
from compressor.errors import MeasureError, UsageError

QUICK = Settings(schedule=Schedule(warmup=2, repeats=1, rounds=6, seconds=1e-6))


def doubling(shape: list[int | str], dtype: int = TensorProto.FLOAT) -> bytes:
    """A model that adds its input to itself."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


class FakeMachine:
    """A clock that only runs when a runner runs; `slowness` changes with the time."""

    def __init__(self, slowness: Callable[[float], float] = lambda _: 1.0) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.slowness = slowness

    def clock(self) -> float:
        return self.now

    def runner(
        self, name: str, seconds: float, cold: int = 0, penalty: float = 10
    ) -> Callable[[], None]:
        calls = iter(range(10**9))

        def run() -> None:
            self.order.append(name)
            factor = penalty if next(calls) < cold else 1.0
            self.now += seconds * factor * self.slowness(self.now)

        return run


def times(machine: FakeMachine, runners: dict, **schedule: float) -> dict:
    return time_in_turns(
        runners, Schedule(**schedule), clock=machine.clock, rng=np.random.default_rng(0)
    )


def test_cold_runs_are_not_in_the_figure():
    machine = FakeMachine()
    found = times(machine, {"a": machine.runner("a", 0.001, cold=6)}, seconds=0.3)["a"]
    assert found.median_ms == pytest.approx(1)
    assert found.p90_ms == pytest.approx(1)


def test_the_first_run_of_each_turn_is_not_timed():
    machine = FakeMachine()
    last: list[str] = []

    def runner(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            machine.now += seconds * (5 if last != [name] else 1)  # another model took the caches
            last[:] = [name]

        return run

    found = times(machine, {"a": runner("a", 0.001), "b": runner("b", 0.002)}, seconds=1)
    assert (found["a"].p90_ms, found["b"].p90_ms) == (pytest.approx(1), pytest.approx(2))
    assert found["b"].ratio == pytest.approx(2)


def test_models_take_turns_in_an_order_that_changes():
    machine = FakeMachine()
    runners = {name: machine.runner(name, 0.001) for name in "abc"}
    times(machine, runners, warmup=1, repeats=1, rounds=40, seconds=1e-9)
    rounds = [machine.order[i : i + 6 : 2] for i in range(3, len(machine.order), 6)]
    assert len(rounds) == 40
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) == 6


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    machine = FakeMachine(slowness=lambda now: 1 + 9 * now)  # ten times slower after a second
    runners = {"a": machine.runner("a", 0.001), "b": machine.runner("b", 0.0005)}
    found = times(machine, runners, seconds=2, repeats=1)
    assert found["a"].p90_ms > 3 * found["a"].p10_ms
    assert found["b"].ratio == pytest.approx(0.5, rel=0.03)
    assert found["a"].ratio == 1
    assert found["b"].ratio_low <= found["b"].ratio <= found["b"].ratio_high


def warm_ups(machine: FakeMachine, runner: Callable[[], None], **schedule: float) -> int:
    found = times(machine, {"a": runner}, rounds=6, repeats=1, **schedule)["a"]
    return len(machine.order) - 2 * found.runs  # a turn is one run that counts and one that not


def test_warm_up_lasts_until_the_time_is_stable():
    machine = FakeMachine()
    assert warm_ups(machine, machine.runner("a", 0.001), seconds=1) == 10
    machine = FakeMachine()
    assert warm_ups(machine, machine.runner("a", 0.001, cold=7), seconds=1) == 15


def test_warm_up_is_bounded_in_runs_and_in_time():
    noisy = FakeMachine(slowness=lambda now: 1 + now)  # never stable
    assert warm_ups(noisy, noisy.runner("a", 0.1), warmup=7, seconds=100) == 7
    slow = FakeMachine()
    assert warm_ups(slow, slow.runner("a", 1.0), seconds=1) == 3


def test_time_is_bounded_and_rounds_have_a_floor():
    machine = FakeMachine()
    found = times(machine, {"a": machine.runner("a", 0.01)}, rounds=6, repeats=2, seconds=2)
    assert 2 <= machine.now <= 2.1
    assert found["a"].runs > 12
    machine = FakeMachine()
    found = times(machine, {"a": machine.runner("a", 5.0)}, rounds=6, repeats=2, seconds=2)
    assert found["a"].runs == 12


def test_spread_encloses_the_median():
    noise = np.random.default_rng(1)
    machine = FakeMachine(slowness=lambda _: float(noise.lognormal(0, 0.3)))
    found = times(machine, {"a": machine.runner("a", 0.001)}, seconds=2)["a"]
    assert found.p10_ms < found.low_ms < found.median_ms < found.high_ms < found.p90_ms


def test_measures_files_and_bytes_with_a_free_batch(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(doubling(["batch", 3]))
    found = measure({"file": path, "bytes": doubling(["batch", 3])}, QUICK, batch=4)
    assert list(found) == ["file", "bytes"]
    assert found["file"].ratio == 1
    assert all(latency.runs == 6 and latency.median_ms > 0 for latency in found.values())


def test_inputs_have_the_models_shapes_and_types():
    rng = np.random.default_rng(0)
    floats = create_session(doubling(["n", 3, 2]), QUICK)
    (made,) = random_inputs(floats, rng, batch=5)
    assert (made.shape, made.dtype) == ((5, 3, 2), np.float32)
    ints = create_session(doubling([2, 3], TensorProto.INT64), QUICK)
    (made,) = random_inputs(ints, rng, batch=5)
    assert (made.shape, made.dtype) == ((2, 3), np.int64)
    assert set(made.ravel()) <= {0, 1}
    np.testing.assert_array_equal(run_session(ints, [made])[0], 2 * made)


def test_other_free_dimensions_need_a_shape():
    model = doubling(["n", 3, "height"])
    with pytest.raises(UsageError, match=r"'x'.*dimension 2 is free.*shapes="):
        measure({"m": model}, QUICK)
    found = measure({"m": model}, QUICK, shapes={"x": (1, 3, 7)})
    assert found["m"].runs == 6


@pytest.mark.parametrize("content", [None, b"", b"just some text\n" * 9, b"\x00\xff" * 40])
def test_what_is_not_a_model_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MeasureError, match=r"'mine'.*broken\.onnx"):
        measure({"mine": path}, QUICK)


def test_a_cut_off_file_is_an_error(tmp_path):
    weights = np.ones(1000, np.float32)
    model = onnx.load_from_string(doubling([1000]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    whole = model.SerializeToString()
    path = tmp_path / "half.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MeasureError, match=r"half\.onnx"):
        create_session(path, QUICK)


def test_unknown_provider_lists_what_there_is():
    with pytest.raises(UsageError, match=r"CPUExecutionProvider.*'NoSuchProvider'"):
        measure({"m": doubling([1])}, Settings(provider="NoSuchProvider"))


def test_wrong_inputs_are_errors_of_ours():
    session = create_session(doubling([2, 3]), QUICK)
    with pytest.raises(MeasureError, match="takes 1 inputs"):
        run_session(session, [])
    with pytest.raises(MeasureError, match="cannot run"):
        run_session(session, [np.zeros((9, 9), np.float32)])


def test_nothing_to_measure_and_senseless_settings():
    with pytest.raises(UsageError, match="at least one model"):
        measure({}, QUICK)
    with pytest.raises(UsageError, match="threads"):
        Settings(threads=0)
    with pytest.raises(UsageError, match=r"one of disabled, basic, extended, all.*'most'"):
        Settings(optimisation="most")
    with pytest.raises(UsageError, match="different cores"):
        Settings(affinity=(0, 0))
    with pytest.raises(UsageError, match="different cores"):
        Settings(affinity=(-1,))
    with pytest.raises(UsageError, match="batch size must be at least 1"):
        measure({"m": doubling([1])}, QUICK, batch=0)
    with pytest.raises(UsageError, match="rounds must be at least 6"):
        Schedule(rounds=5)
    with pytest.raises(UsageError, match="warmup"):
        Schedule(repeats=0)


def test_a_batch_size_that_the_model_does_not_take():
    with pytest.raises(UsageError, match=r"'m'.*batches of 2.* is 4; export it"):
        measure({"m": doubling([2, 3])}, QUICK, batch=4)
    assert measure({"m": doubling([4, 3])}, QUICK, batch=4)["m"].runs == 6


@pytest.mark.parametrize("level", OPTIMISATIONS)
def test_every_optimisation_level_runs(level):
    found = measure({"m": doubling([2])}, replace(QUICK, optimisation=level))
    assert found["m"].runs == 6


def test_optimisation_changes_the_graph(monkeypatch):
    """The level reaches ONNX Runtime: it is told apart by what the options say."""
    seen = []
    real = ort.InferenceSession

    def spy(model, options, **how):
        seen.append(options.graph_optimization_level)
        return real(model, options, **how)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    for level in OPTIMISATIONS:
        create_session(doubling([2]), Settings(optimisation=level))
    levels = ort.GraphOptimizationLevel
    assert seen == [
        levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED,
        levels.ORT_ENABLE_ALL,
    ]  # fmt: skip


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no affinity"
)


@needs_affinity
def test_cores_are_kept_during_the_measurement_and_given_back_after():
    before = os.sched_getaffinity(0)
    core = min(before)
    seen = set()

    def clock():
        seen.add(frozenset(os.sched_getaffinity(0)))
        return float(next(ticks))

    ticks = iter(range(10**9))
    job = Job({"m": doubling([2])}, replace(QUICK, affinity=(core,)))
    measure_fully(job, LocalDevice(clock))
    assert seen == {frozenset([core])}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(MeasureError):
        measure({"m": b"no model"}, job.settings)
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_a_core_that_is_not_there():
    with pytest.raises(UsageError, match=r"among the cores .*, but got 9999"):
        measure({"m": doubling([2])}, replace(QUICK, affinity=(9999,)))


def test_a_system_that_cannot_keep_cores_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(UsageError, match="cannot keep a program on chosen cores"):
        measure({"m": doubling([2])}, replace(QUICK, affinity=(0,)))


def test_peak_memory_is_that_of_the_model_alone(tmp_path):
    """Input and output of the larger model take 67 MB each."""
    path = tmp_path / "large.onnx"
    path.write_bytes(doubling([16, 1024, 1024]))
    found = measure({"small": doubling([2]), "large": path}, QUICK, memory=True)
    small, large = found["small"].memory_bytes, found["large"].memory_bytes
    assert small is not None
    assert large is not None
    assert large - small == pytest.approx(2 * 67e6, rel=0.15)
    assert small < 60e6
    assert measure({"small": doubling([2])}, QUICK)["small"].memory_bytes is None


def test_memory_that_cannot_be_measured_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(MeasureError, match=r"'m': it cannot be loaded and run once: exit status 1"):
        measure({"m": doubling([2])}, QUICK, memory=True)


def test_what_was_measured_says_where():
    found = measure_fully(Job({"m": doubling([2])}, QUICK))
    assert (found.device, found.runtime) == ("local", ort.__version__)
    assert found.processor


def test_many_tiny_models_are_measured_in_one_go():
    models = {f"m{i}": doubling([i + 1]) for i in range(20)}
    assert list(measure(models, QUICK)) == list(models)


@pytest.mark.parametrize(
    ("module", "needed"), [(agent, {"numpy", "onnxruntime"}), (courier, set())]
)
def test_what_runs_on_a_device_needs_python_3_8_and_nothing_of_ours(module, needed):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    found = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert found - sys.stdlib_module_names == needed
