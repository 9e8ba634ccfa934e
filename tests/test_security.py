"""What comes from others is data: no pickle, no code, no shell, no way out of the run."""

from __future__ import annotations

import ast
import os
import shlex
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from cli.main import main
from compressor import untrusted
from compressor.device.devices import parse_device
from compressor.device.job import Job, Settings
from compressor.device.local import LocalDevice
from compressor.device.ssh import SshDevice
from compressor.device.timing import Schedule
from compressor.errors import MeasureError, RunError
from compressor.files import JOURNAL
from compressor.report.overview import Overview
from compressor.report.result import RunSummary
from compressor.run.deliveries import _clear
from compressor.search.journal import Journal
from compressor.search.journal_file import require_plain
from compressor.search.outcome import Outcome
from compressor.untrusted import parse_json, read_json
from tests.test_result import make_summary

ROOT = Path(__file__).resolve().parents[1]
QUICK = Settings(schedule=Schedule(warmup=1, repeats=1, rounds=6, seconds=0.01))


def calls(folder: str) -> list[tuple[Path, ast.Call]]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]
    return [(p, node) for p, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("folder", ["compressor", "cli", "adapters", "samples"])
def test_weights_are_never_unpickled(folder: str) -> None:
    for path, call in calls(folder):
        name = ast.unparse(call.func)
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name in ("torch.load", "torch.jit.load"):
            assert given.get("weights_only") == "True", (path, ast.unparse(call))
        assert given.get("allow_pickle", "False") == "False", path
        assert not name.startswith(("pickle.", "joblib.", "cloudpickle.", "dill.")), path


@pytest.mark.parametrize("folder", ["compressor", "cli", "adapters"])
def test_no_program_is_started_through_a_shell(folder: str) -> None:
    for path, call in calls(folder):
        name = ast.unparse(call.func)
        assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path
        assert all(k.arg != "shell" for k in call.keywords), (path, ast.unparse(call))


# ---- files


@pytest.mark.parametrize("kind", ["pipe", "large", "zero", "nested", "nan", "huge", "half"])
def test_a_result_that_is_no_file_of_ours_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result.json"
    make_summary().write(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        path.touch()
        os.truncate(path, untrusted.MOST_JSON + 1)
    else:
        seconds = '"seconds": 61.5'
        assert seconds in text
        other = {"nested": "[" * 10**5, "nan": "NaN", "huge": "9" * 400, "half": '"\\ud800"'}[kind]
        path.write_text(text.replace(seconds, f'"seconds": {other}'), encoding="utf-8")
    with pytest.raises(RunError, match=r"result\.json"):
        RunSummary.read(tmp_path)


def test_json_is_what_can_be_written_again(tmp_path: Path) -> None:
    assert parse_json('{"a": [1, 2.5, "\\ud83d\\ude00", null]}') == {
        "a": [1, 2.5, "\U0001f600", None]
    }
    for text in ("NaN", "-Infinity", "1e999", '["\\udc00"]', "[" * 10**5, "{"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")


def journal(path: Path) -> Path:
    with Journal.open(path, {}) as made:
        made.record((1,), Outcome(0.5, "", 1.0), {})
    return path


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
@pytest.mark.parametrize("way", ["link", "pipe"])
def test_a_journal_that_leads_elsewhere_is_refused(tmp_path: Path, suffix: str, way: str) -> None:
    outside = journal(tmp_path / "outside.sqlite")
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / JOURNAL
    if suffix:
        journal(path)
    place = path.with_name(path.name + suffix)
    before = outside.read_bytes()
    place.symlink_to(outside) if way == "link" else os.mkfifo(place)
    with pytest.raises(RunError, match="is a link or no file"):
        Journal.open(path, {})
    assert outside.read_bytes() == before


def test_a_rollback_file_that_names_a_third_one_is_refused(tmp_path: Path) -> None:
    path = journal(tmp_path / JOURNAL)
    rollback = tmp_path / f"{JOURNAL}-journal"
    rollback.write_bytes(bytes(600) + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(RunError, match="names another file"):
        Journal.read(path)
    rollback.write_bytes(b"")  # as a kill can leave it
    with Journal.read(path) as read:
        assert read.outcomes()
    os.truncate(path, 1 << 31)
    with pytest.raises(RunError, match="holds more than"):
        require_plain(path)


def test_a_journal_of_another_program_runs_no_trigger(tmp_path: Path) -> None:
    path = journal(tmp_path / JOURNAL)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TRIGGER t AFTER INSERT ON notes BEGIN DELETE FROM evaluations; END")
    connection.close()
    with pytest.raises(RunError, match="tables of another program"):
        Journal.open(path, {})


def test_a_folder_of_a_frontier_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    make_summary().write(outside)
    make_summary().write(run / "other")
    (run / "linked").symlink_to(outside)
    Overview.of([(name, make_summary()) for name in ("other", "linked")]).write(run)
    result = CliRunner().invoke(main, ["report", str(run)])
    assert (result.exit_code, "'linked' is a link" in result.output) == (2, True)
    assert [p.name for p in outside.iterdir()] == ["result.json"]
    _clear(run / "linked")
    assert not (run / "linked").exists()
    assert (outside / "result.json").is_file()


# ---- ONNX


def saved(folder: Path, *nodes: onnx.NodeProto, **constants: onnx.TensorProto) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), *nodes], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        list(constants.values()),
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "m.onnx")
    return folder / "m.onnx"


def endless(folder: Path) -> Path:
    def scalar(name: str, kind: int = TensorProto.INT64) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    go, on = scalar("go", TensorProto.BOOL), scalar("on", TensorProto.BOOL)
    nodes = [
        helper.make_node("Identity", ["go"], ["on"]),
        helper.make_node("Add", ["i", "sum"], ["more"]),
    ]
    body = helper.make_graph(nodes, "body", [scalar("i"), go, scalar("sum")], [on, scalar("more")])
    trips = helper.make_tensor("trips", TensorProto.INT64, [], [2**62])
    loop = helper.make_node("Loop", ["trips", "", "trips"], ["looped"], body=body)
    path = saved(folder, loop, trips=trips)
    model = onnx.load(path)
    model.graph.output.append(scalar("looped"))
    onnx.save(model, path)
    return path


def measured(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["measure", *map(str, words), "--seconds", "0.01"])
    return result.exit_code, result.output


def test_a_graph_that_never_ends_is_an_error_in_time(tmp_path: Path) -> None:
    code, said = measured(endless(tmp_path), "--timeout", "4")
    assert code == 1
    assert "must end within 4 s, but did not; allow more with --timeout" in said


def test_a_model_too_slow_for_its_rounds_is_an_error(tmp_path: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    with pytest.raises(MeasureError, match=r"must end within 20 s, but would take longer; allow"):
        LocalDevice(clock, trial=20.0).take(Job({"m": saved(tmp_path)}, QUICK))
    assert now[0] < 40


def test_a_graph_that_asks_for_all_memory_is_an_error(tmp_path: Path) -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2**21, 2**21])
    nodes = (
        helper.make_node("ConstantOfShape", ["shape"], ["z"]),
        helper.make_node("Add", ["z", "z"], ["zz"]),
    )
    path = saved(tmp_path, *nodes, shape=shape)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("zz", TensorProto.FLOAT, None))
    onnx.save(model, path)
    code, said = measured(path)
    assert (code, "error: model" in said) == (1, True), said


def test_an_input_that_does_not_fit_into_memory_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**50
    onnx.save(model, path)
    code, said = measured(path)
    assert code == 1
    assert "an input must fit into memory, but 'x' has the shape [1, 1125899906842624]" in said


def test_weights_outside_of_the_models_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "secret.bin")
    for place in ("../secret.bin", str(tmp_path / "secret.bin"), "/dev/zero", "link.bin"):
        weight = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=place)
        path = saved(tmp_path / "in", helper.make_node("Add", ["x", "w"], ["z"]), w=weight)
        code, said = measured(path)
        assert (code, "error: model" in said) == (1, True), said


# ---- shells and makers


def test_no_name_reaches_a_shell(tmp_path: Path) -> None:
    name = "$(touch out);`touch out`.onnx"
    path = saved(tmp_path).rename(tmp_path / name)
    bench = tmp_path / "bench"
    bench.write_text('#!/bin/sh\nsh -c "echo $1; echo 1.5"\n')  # a shell further on
    bench.chmod(bench.stat().st_mode | stat.S_IXUSR)
    before = sorted(p.name for p in tmp_path.iterdir())
    device = parse_device(f"cmd:{bench} {{model}}")
    assert device.take(Job({name: path}, QUICK)).turns[name].min() == 0.0015
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_what_ssh_runs_there_is_one_quoted_word() -> None:
    device = parse_device("ssh://user@host?python=/a b/$(x);'y'")
    assert isinstance(device, SshDevice)
    *_, dashes, destination, remote = device._command(100)
    assert (dashes, destination) == ("--", "user@host")
    assert shlex.split(remote)[:2] == ["/a b/$(x);'y'", "-c"]
    assert len(shlex.split(remote)) == 3


def test_nothing_is_noted_in_the_home_folder(tmp_path: Path) -> None:
    model = saved(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys; from cli.main import main; "
        f"main(['measure', {str(model)!r}, '--seconds', '0.01'])"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=ROOT, check=False, capture_output=True,
        env={**{k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"},
             "HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []


def test_a_crash_of_the_runtime_names_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(MeasureError, match=r"model 'm': it cannot be .* ended by signal 11"):
        LocalDevice(trial=5.0).take(Job({"m": saved(tmp_path)}, QUICK))
