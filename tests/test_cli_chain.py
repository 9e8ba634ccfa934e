"""The command line with the whole chain behind it, on a small network, and on bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch

from compressor.device.timing import Schedule
from compressor.report.result import RunSummary
from compressor.run import delivery
from tests.test_cli import call

NET = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()

def example_input():
    return torch.zeros(1, 3, 8, 8)

def batches(seed):
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, 8, 8, generator=rng), torch.randint(0, 4, (8,), generator=rng))
        for _ in range(2)
    ]

def calibration_data():
    return batches(0)

def validation_data():
    return batches(1)
"""
SLOW = """
import time

def score(model):
    with open(CALLS, "a") as file:
        file.write("x")
    time.sleep(0.3)
    return 0.5
"""
FILES = {
    "architecture.json", "journal.sqlite", "model.onnx", "model.safetensors", "report.html",
    "result.json",
}  # fmt: skip
HALF = ("--budget", "madds=50%", "--evaluations", "6")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="module", autouse=True)
def _short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "_FINAL", Schedule(rounds=6, seconds=0.2))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that other tests read."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "net.py").write_text(NET)
    result = call("compress", folder / "net.py", *HALF, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert "Compressed" in result.stdout
    assert "Score (top1)" in result.stdout
    return folder / "run"


def refused(out: Path, *words: object, code: int = 2) -> str:
    """The message of a call that must fail and leave nothing that looks finished."""
    before = sorted(out.iterdir()) if out.is_dir() else None
    result = call(*words, "--out", out)
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stdout == ""
    if before is None:
        assert not out.exists() or {p.name for p in out.iterdir()} <= {"journal.sqlite"}
    else:
        assert sorted(out.iterdir()) == before
    return result.stderr


def test_a_run_holds_its_files(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == FILES
    summary = RunSummary.read(finished)
    assert summary.best.madds <= 0.5 * summary.base.madds
    assert all(row.met for row in summary.budgets)
    assert summary.settings["target"] == str(finished.parent / "net.py")
    onnx.checker.check_model(str(finished / "model.onnx"))


UNLABELLED = {
    "inputs alone to judge by": "\ndef validation_data():\n    return [x for x, _ in batches(1)]\n",
    "inputs alone to divide": "\ndel validation_data\n"
    "def calibration_data():\n    return [x for x, _ in batches(0)]\n",
}


@pytest.mark.parametrize("change", UNLABELLED)
def test_without_labels_agreement_judges(net: Path, tmp_path: Path, change: str) -> None:
    net.write_text(NET + UNLABELLED[change])
    result = call("compress", net, *HALF, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Score (agreement)" in result.stdout
    summary = RunSummary.read(tmp_path / "run")
    assert summary.settings["score"] == "agreement"
    assert summary.base.score == 0.0
    assert summary.best.score is not None
    assert summary.best.score < 0.0
    assert "Score (agreement)" in (tmp_path / "run" / "report.html").read_text()


def test_without_validation_data_labelled_calibration_data_judges(
    net: Path, tmp_path: Path
) -> None:
    net.write_text(NET + "\ndel validation_data\n")
    result = call("compress", net, *HALF, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["score"] == "top1"


def test_another_score_does_not_resume(finished: Path) -> None:
    words = ("compress", finished.parent / "net.py", *HALF, "--score", "loss")
    assert 'score was "top1" and is now "loss"' in refused(finished, *words)


def test_labels_that_are_asked_for_must_be_there(net: Path, tmp_path: Path) -> None:
    net.write_text(NET + UNLABELLED["inputs alone to judge by"])
    words = ("compress", net, *HALF, "--score", "top1")
    assert "inputs alone" in refused(tmp_path / "run", *words)


def test_the_same_command_resumes_without_new_evaluations(finished: Path) -> None:
    before = RunSummary.read(finished)
    words = ("compress", finished.parent / "net.py", *HALF, "--out", finished, "--json")
    again = RunSummary.from_json(json.loads(call(*words).stdout))
    assert again.architecture == before.architecture
    assert again.evaluations == before.evaluations


def test_export_and_report_and_measure_take_a_run(finished: Path) -> None:
    result = call("export", finished, "--static-batch")
    assert (result.exit_code, "is executed" in result.output) == (2, True)  # a run names no code
    target = finished.parent / "net.py"
    result = call("export", finished, target, "--static-batch")
    assert result.exit_code == 0, result.output
    shape = onnx.load(finished / "model.onnx").graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 1
    assert call("export", finished, target).exit_code == 0
    (finished / "report.html").unlink()
    assert call("report", finished).exit_code == 0
    assert (finished / "report.html").is_file()
    result = call("measure", finished / "model.onnx", "--json")
    assert json.loads(result.stdout)["models"][0]["median_ms"] > 0


def test_inspect_shows_the_network(net: Path) -> None:
    found = json.loads(call("inspect", net, "--json").stdout)
    assert found["layers"]
    assert found["madds"] == 3 * 16 * 9 * 64 + 16 * 16 * 9 * 64 + 16 * 4
    result = call("inspect", net)
    assert (result.exit_code, "Search layer" in result.stdout) == (0, True)


def test_ctrl_c_keeps_the_journal(net: Path, tmp_path: Path) -> None:
    """A slow score, interrupted as a user does it, then finished by the same command."""
    calls, out = tmp_path / "calls", tmp_path / "run"
    net.write_text(f"{NET}{SLOW}\nCALLS = {str(calls)!r}\n")
    words = ["compress", str(net), "--budget", "madds=50%", "--evaluations", "9", "--out", str(out)]
    # A shell's background jobs ignore Ctrl-C, and so would a test run that was started as one.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (calls.exists() and calls.stat().st_size >= 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert {p.name for p in out.iterdir()} & FILES == {"journal.sqlite"}
    result = call(*words)
    assert result.exit_code == 0, result.output
    summary = RunSummary.read(out)
    # beside each evaluation once: the original twice, the interrupted one, and of the network
    # that was found three forms, of which the best is kept
    assert calls.stat().st_size <= summary.evaluations + summary.failed + 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("\nimport no_such_thing\n", "no_such_thing"),
        ("\ndef calibration_data():\n    return []\n", "at least one batch"),
        ("\ndef validation_data():\n    return iter(())\n", "at least one batch"),
        ("\ndef calibration_data():\n    return [torch.zeros(8, 5)]\n", "[8, 5]"),
        ("\ndef validation_data():\n    return [(torch.ones(8, 1, 8, 8), torch.ones(8).long())]\n",
         "[8, 1, 8, 8]"),
        ("\ndef example_input():\n    return torch.zeros(1, 7)\n", "[1, 7]"),
        ("\ndef score(model):\n    raise KeyError('labels')\n", "KeyError: 'labels'"),
        ("\ndef score(model):\n    return float('nan')\n", "finite number"),
        ("\ndef score(model):\n    return None\n", "finite number"),
        ("\ndef score(model):\n    return 'good'\n", "finite number"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_used(net: Path, tmp_path: Path, change: str, said: str) -> None:
    net.write_text(NET + change)
    assert said in refused(tmp_path / "run", "compress", net, *HALF)


def test_a_dict_has_no_default_score(net: Path, tmp_path: Path) -> None:
    wrapped = """
class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        return {"logits": self.inner(x)}
plain = build_model
def build_model():
    return Wrapped(plain())
"""
    net.write_text(NET + wrapped)
    message = refused(tmp_path / "run", "compress", net, *HALF)
    assert "returned dict" in message
    assert "define score(model)" in message
    words = ("compress", net, *HALF, "--score", "agreement", "--out", tmp_path / "run")
    assert call(*words).exit_code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_model_on_cuda_where_there_is_none(net: Path, tmp_path: Path) -> None:
    net.write_text(NET.replace(").eval()", ").eval().cuda()"))
    assert "no CUDA device here" in refused(tmp_path / "run", "compress", net, *HALF)


def test_a_missing_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.py"
    assert "does not exist" in refused(tmp_path / "run", "compress", missing, *HALF)


@pytest.mark.parametrize(
    ("budget", "code", "said"),
    [
        ("madds=1", 1, "cheapest"),
        ("params=1%", 1, "cheapest"),
        ("madds=10G", 2, "already meets"),
    ],
)
def test_budgets_out_of_reach(net: Path, tmp_path: Path, budget: str, code: int, said: str) -> None:
    message = refused(tmp_path / "run", "compress", net, "--budget", budget, code=code)
    assert said in message


def test_an_adapter_that_is_not_there(net: Path, tmp_path: Path) -> None:
    message = refused(tmp_path / "run", "compress", net, *HALF, "--adapter", "none")
    assert "none" in message


def test_a_provider_that_is_not_there(net: Path, tmp_path: Path) -> None:
    message = refused(tmp_path / "run", "compress", net, *HALF, "--provider", "NoProvider")
    assert "NoProvider" in message


def test_the_directory_of_another_run(finished: Path, net: Path) -> None:
    net.write_text(NET.replace("manual_seed(0)\n    return", "manual_seed(1)\n    return"))
    refused(finished, "compress", net, *HALF)


def test_a_directory_with_other_files(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").touch()
    assert "holds other files" in refused(out, "compress", net, *HALF)
    result = call("compress", net, *HALF, "--out", out / "thesis.tex")
    assert (result.exit_code, "is a file" in result.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory(net: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir(mode=0o500)
    assert "cannot be written" in refused(tmp_path / "fixed" / "run", "compress", net, *HALF)


def test_a_place_that_takes_no_files(net: Path) -> None:
    assert "cannot be written" in refused(Path("/proc/run"), "compress", net, *HALF)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_is_one_message(finished: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "report", str(finished)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_another_model_does_not_fit_the_run(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        NET.replace("3, 16, 3", "3, 24, 3").replace("16, 16, 3", "24, 16, 3")
    )
    result = call("export", finished, tmp_path / "other.py")
    assert result.exit_code == 2, result.output
    assert "does not fit" in result.stderr
    onnx.checker.check_model(str(finished / "model.onnx"))
