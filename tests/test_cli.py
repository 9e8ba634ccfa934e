"""The command line: what is parsed, printed and returned; the chain behind it is a double."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from torch import nn

from cli import compress_command, export_command
from cli.main import main
from cli.measure_command import parse_shapes
from cli.progress import PlainLines, duration, watching
from cli.tables import closing_table, inspection_parts, latency_table
from compressor.device.job import Device, Job
from compressor.device.measure import Measured
from compressor.device.timing import Latency
from compressor.errors import CheckError, InfeasibleError, UsageError
from compressor.progress import Event
from compressor.report.result import Figures, RunSummary
from compressor.run import pipeline
from compressor.run.pipeline import Result as Done
from compressor.run.reading import Inspection, LayerInfo
from compressor.space import Frozen
from tests.test_result import make_summary
from tests.test_target import GOOD

LATENCY = Latency(1.5, 1.4, 1.7, 1.45, 1.55, 60, 1.0, 0.99, 1.01)


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text("print('hello from the target')\n" + GOOD)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the chain; holds what it was asked for."""
    seen: dict[str, Any] = {}

    def compress(model: nn.Module, example: object, *, out: Path, **options: Any) -> Done:
        seen.update(options, model=model, out=out)
        options["progress"](Event("search", 1, 2, "best 0.9"))
        settings = {"seed": options["seed"], **options["origin"]}
        summary = replace(make_summary(), settings=settings, command=options["command"])
        summary.write(out)
        return Done(model, summary.frontier, out / "model.onnx", out, summary)

    monkeypatch.setattr(pipeline, "compress", compress)
    return seen


def failing(error: BaseException) -> Callable[..., None]:
    def compress(*_: object, **__: object) -> None:
        raise error

    return compress


def test_help_needs_no_torch() -> None:
    code = "import sys; from cli.main import main; main(['--help'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("inspect", "compress", "export", "measure"))


@pytest.mark.parametrize("name", ["inspect", "compress", "export", "measure", "report"])
def test_every_command_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_version_and_unknown_commands() -> None:
    assert call("--version").stdout.startswith("compressor ")
    result = call("squeeze")
    assert (result.exit_code, "No such command 'squeeze'" in result.stderr) == (2, True)


def test_compress_asks_for_what_was_said(net: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    result = call(
        "compress", net, "--budget", "madds=50%", "--budget", "params=2M",
        "--out", tmp_path / "run", "--evaluations", 7, "--finetune", 2,
        "--score-epochs", 1, "--seed", 3, "--threads", 2, "--device", "ssh://me@board",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked["budget"] == ("madds=50%", "params=2M")
    assert (asked["evaluations"], asked["finetune"], asked["score_epochs"]) == (7, 2, 1)
    assert (asked["seed"], asked["threads"], asked["adapter"]) == (3, 2, "generic")
    assert asked["device"] == "ssh://me@board"
    assert "--device ssh://me@board" in asked["command"]
    assert len(asked["calibration"]) == 2
    assert asked["score"] is None
    for said in ("MAdds", "40.6M", "20.2M", "49.8%", "1.51 ms", "0.9012", "-0.0161", "model.onnx"):
        assert said in result.stdout
    assert "search 1/2, best 0.9" in result.stderr


@pytest.mark.parametrize("name", ["top1", "loss", "agreement"])
def test_a_score_is_asked_for_by_name(
    net: Path, asked: dict[str, Any], tmp_path: Path, name: str
) -> None:
    words = ("compress", net, "--budget", "madds=50%", "--out", tmp_path / "run", "--score", name)
    assert call(*words).exit_code == 0
    assert asked["score"] == name
    assert f"--score {name}" in RunSummary.read(tmp_path / "run").command


def test_a_score_of_the_target_and_one_by_name_are_one_too_many(
    net: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    net.write_text(GOOD + "\ndef score(model):\n    return 0.5\n")
    words = ("compress", net, "--budget", "madds=50%", "--out", tmp_path / "run")
    result = call(*words, "--score", "loss")
    assert result.exit_code == 2
    assert "leave --score out, or drop score(model)" in result.stderr
    assert not asked
    assert call(*words).exit_code == 0
    assert asked["score"](nn.Identity()) == 0.5


def test_a_score_that_there_is_not_names_the_choices(net: Path, tmp_path: Path) -> None:
    words = ("compress", net, "--budget", "madds=50%", "--out", tmp_path / "run")
    result = call(*words, "--score", "top5")
    assert result.exit_code == 2
    assert all(name in result.stderr for name in ("top1", "loss", "agreement"))


def test_a_run_remembers_its_target_and_command(
    net: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("compress", "net.py", "--budget", "madds=50%", "--out", "a run").exit_code == 0
    summary = RunSummary.read(tmp_path / "a run")
    assert summary.settings["target"] == str(net)
    assert summary.settings["data"] is None
    assert summary.command == "compressor compress net.py --budget madds=50% --out 'a run'"


def test_json_is_alone_on_stdout(net: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("compress", net, "--budget", "madds=50%", "--out", out, "--json")
    found = json.loads(result.stdout)
    assert found["run"] == str(out)
    assert RunSummary.from_json(found) == RunSummary.read(out)
    assert "hello from the target" in result.stderr
    assert found["command"].endswith("--json")


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        (("madds=fast",), "UNIT=AMOUNT"),
        (("madds=0%",), "above 0 %"),
        (("madds=100%",), "below 100 %"),
        (("madds=120%",), "below 100 %"),
        (("madds=50%", "madds=40%"), "each unit takes one limit"),
        (("size=5",), "one of madds, params, latency"),
        (("",), "at least one budget"),
    ],
)
def test_budgets_that_cannot_be_meant(
    net: Path, asked: dict[str, Any], tmp_path: Path, budgets: tuple[str, ...], said: str
) -> None:
    words = [word for budget in budgets for word in ("--budget", budget)]
    result = call("compress", net, *words, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stdout == ""
    assert not asked
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "run"), "at least one budget is needed"),
        (("--budget", "madds=50%"), "Missing option '--out'"),
        (("--budget", "madds=50%", "--out", "run", "--evaluations", "0"), "not in the range"),
        (("--budget", "madds=50%", "--out", "run", "--finetune", "some"), "not a valid integer"),
        (("--budget", "madds=50%", "--out", "run", "--data", "imagefolder:x"), "--data is for"),
    ],
)
def test_options_that_cannot_be_meant(net: Path, words: tuple[str, ...], said: str) -> None:
    result = call("compress", net, *words)
    assert (result.exit_code, said in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InfeasibleError("the cheapest network needs 3M"), 1, "error: the cheapest network"),
        (CheckError("ONNX differs"), 1, "error: ONNX differs"),
        (UsageError("another run"), 2, "error: another run"),
        (OSError(28, "No space left on device", "/x"), 1, "No space left on device: /x"),
        (KeyboardInterrupt(), 130, "the same command resumes"),
    ],
)
def test_errors_are_one_message_and_a_code(
    net: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(pipeline, "compress", failing(error))
    result = call("compress", net, "--budget", "madds=50%", "--out", tmp_path / "run")
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "compress", failing(ZeroDivisionError()))
    result = call("compress", net, "--budget", "madds=50%", "--out", tmp_path / "run")
    assert isinstance(result.exception, ZeroDivisionError)


def test_only_compress_speaks_of_a_journal(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "inspect", failing(KeyboardInterrupt()))
    result = call("inspect", net)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")


def make_inspection() -> Inspection:
    choices = tuple(f"{8 * i} ch" for i in range(1, 9))
    return Inspection(
        layers=(
            LayerInfo(
                "[bold]conv[/bold]", tuple(f"part.{i}" for i in range(5)), choices, 9_000, 6_000
            ),
            LayerInfo("head", ("head",), ("k3", "k5"), 1_000, 640),
        ),
        frozen=(Frozen("fc", "the outputs"),),
        sliced=(Frozen("up", "grouped transposed"),),
        madds=12_000,
        params=500,
        least_madds=4_000,
        share=0.8333,
        uncounted={"aten.softmax": 2},
        thop_madds=12_500.0,
        thop_note="counts biases as well",
    )


def test_inspect_shows_layers_totals_and_reasons(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "inspect", lambda *_, **__: make_inspection())
    result = call("inspect", net)
    assert result.exit_code == 0, result.output
    for said in ("[bold]conv[/bold]", "part.0, part.1, part.2 and 2 more",
                 "8 ch | 16 ch | … | 64 ch (8 in all)", "k3 | k5", "9K",
                 "12K MAdds", "83.3%", "fc", "the outputs", "aten.softmax ×2",
                 "12.5K", "counts biases", "Cut without refitting",
                 "grouped transposed"):  # fmt: skip
        assert said in result.stdout
    found = json.loads(call("inspect", net, "--json").stdout)
    assert found["madds"] == 12_000
    assert found["sliced"] == [{"name": "up", "reason": "grouped transposed"}]


def test_inspect_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "inspect", lambda *_, **__: make_inspection())
    (tmp_path / "net.py").write_text(GOOD.partition("def calibration_data")[0])
    assert call("inspect", tmp_path / "net.py").exit_code == 0


def test_a_network_without_search_layers_is_shown() -> None:
    empty = Inspection((), (), (), 5, 5, 5, 0.0, {}, None, "thop failed")
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        for part in inspection_parts(empty):
            console.print(part)
    assert "thop failed" in console.export_text()


def test_export_executes_no_target_that_only_the_run_names(
    net: Path, tmp_path: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def export_run(run: Path, model: object, example: object, **options: Any) -> SimpleNamespace:
        seen.update(options, run=run)
        return SimpleNamespace(path=run / "model.onnx")

    monkeypatch.setattr(pipeline, "export_run", export_run)
    run = tmp_path / "run"
    call("compress", net, "--budget", "madds=50%", "--out", run)
    refused = call("export", run, "--opset", 18)
    assert (refused.exit_code, "hello" in refused.output) == (2, False)
    assert f"compressor export {run} {net}" in refused.stderr
    assert not seen
    result = call("export", run, net, "--opset", 18, "--static-batch")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(run / "model.onnx")
    assert (seen["run"], seen["opset"], seen["dynamic_batch"]) == (run, 18, False)
    assert len(seen["calibration"]) == 2


def test_export_of_a_programs_run_asks_for_the_target(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = make_summary()
    with pytest.raises(UsageError, match=r"names no target; give it: compressor export .* TARGET"):
        export_command.origin({}, run, None)
    assert export_command.origin(summary.settings, run, "other.py") == ("other.py", None)
    with pytest.raises(UsageError, match=r"names the target 'net\.py'; if it is yours"):
        export_command.origin(summary.settings, run, None)
    zoo = replace(summary, settings={"target": "timm:resnet18", "data": "imagefolder:/x"})
    assert export_command.origin(zoo.settings, run, None) == ("timm:resnet18", "imagefolder:/x")


@pytest.mark.parametrize("words", [("export",), ("report",)])
def test_a_run_that_is_none_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = call(*words, tmp_path)
    assert (result.exit_code, "a finished run holds result.json" in result.stderr) == (2, True)


def test_report_is_written_again(tmp_path: Path) -> None:
    make_summary().write(tmp_path)
    result = call("report", tmp_path)
    assert result.stdout.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_measure_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x00 not a model")
    result = call("measure", tmp_path / "broken.onnx")
    assert result.exit_code == 1
    assert "broken.onnx" in result.stderr
    assert "Traceback" not in result.stderr
    assert call("measure", tmp_path / "none.onnx").exit_code == 2
    assert call("measure").exit_code == 2


def test_measure_prints_a_table_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, other = Path("[red]a.onnx"), Path("b.onnx")
    path.touch()
    other.touch()
    jobs: list[Job] = []

    def measured(job: Job, device: Device) -> Measured:
        jobs.append(job)
        slower = replace(LATENCY, ratio=1.5, ratio_low=1.4, ratio_high=1.6, memory_bytes=12_300_000)
        rows = {name: slower if place else LATENCY for place, name in enumerate(job.models)}
        return Measured(rows, device.name, "1.2.3", "a processor")

    monkeypatch.setattr("cli.measure_command.measure_fully", measured)
    assert "[red]a.onnx" in call("measure", path).stdout.replace("\n", "")
    shown = " ".join(call("measure", path, other).stdout.split())
    for said in ("reference", "slower", "12.3 MB", "Too noisy to decide", "a processor", "1.2.3"):
        assert said in shown
    words = (
        "--threads", 2, "--batch", 4, "--shape", "x=1x8", "--optimization", "basic",
        "--affinity", "0,1", "--seconds", 2.5, "--reference", other, "--memory",
        "--device", "ssh://me@board:2222",
    )  # fmt: skip
    found = json.loads(call("measure", path, other, *words, "--json").stdout)
    job = jobs[-1]
    assert list(job.models) == [str(other), str(path)]
    assert (job.batch, job.shapes, job.memory) == (4, {"x": (1, 8)}, True)
    assert (job.settings.threads, job.settings.affinity) == (2, (0, 1))
    assert job.settings.schedule.seconds == 2.5
    assert (found["threads"], found["optimisation"], found["batch"]) == (2, "basic", 4)
    assert (found["device"], found["runtime"]) == ("ssh://me@board:2222", "1.2.3")
    assert found["models"][0]["median_ms"] == 1.5
    assert [row["verdict"] for row in found["models"]] == ["reference", "slower"]
    assert [row["ratio_noisy"] for row in found["models"]] == [False, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--affinity", "0-3"), "cores have the form 0,1"),
        (("--affinity", "0,0"), "different cores"),
        (("--seconds", "0"), "seconds above 0"),
        (("--seconds", "nan"), "seconds above 0"),
        (("--device", "gpu"), "a device must be local"),
        (("--reference", "none.onnx"), "none.onnx"),
        (("--optimisation", "most"), "most"),
    ],
)
def test_measure_refuses_what_cannot_be_meant(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "a.onnx").touch()
    result = call("measure", tmp_path / "a.onnx", *words)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_shapes() -> None:
    assert parse_shapes(["x=1x3x8x8", "ids=1,7"]) == {"x": (1, 3, 8, 8), "ids": (1, 7)}
    with pytest.raises(UsageError, match="INPUT=1x3x224x224"):
        parse_shapes(["x=big"])


def test_tables_show_what_was_not_measured_as_a_dash() -> None:
    table = closing_table(Figures(10, 10), Figures(5, 5))
    assert list(table.columns[1].cells)[2:] == ["–", "–", "–"]
    assert list(table.columns[0].cells)[-1] == "Score"
    named = closing_table(Figures(10, 10, 0.0), Figures(5, 5, -0.1), "agreement")
    assert [list(c.cells)[-1] for c in named.columns] == ["Score (agreement)", "0", "-0.1", "-0.1"]
    assert latency_table({"a": LATENCY}, "CPU").row_count == 1


def test_plain_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = PlainLines(Console(width=200), clock=lambda: now[0])
    for done in range(101):
        lines(Event("search", done, 100, f"best 0.{done:03}"))
        now[0] += 1.0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "search 0/100, best 0.000"
    assert shown[1] == "search 10/100, best 0.010, 90 s left".replace("90 s", "2 min")
    assert shown[-1] == "search 100/100, best 0.100"
    assert len(shown) == 11


def test_a_stage_that_ends_early_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines(Console(width=200), clock=lambda: 0.0)
    for event in (Event("search", 0, 9), Event("search", 5, 9), Event("export", 0, None, "ONNX")):
        lines(event)
    assert capsys.readouterr().out.splitlines() == ["search 0/9", "search 5/9", "export, ONNX"]


def test_a_terminal_gets_a_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(force_terminal=True, width=120, record=True)
    with console.capture() as shown, watching(console) as progress:
        progress(Event("read", 1, None))
        progress(Event("search", 3, 4, "[red]best[/red] 0.9"))
        progress(Event("export", 0, None))
    assert "3/3" in shown.get()  # the search is over, though it could have gone on
    assert "[red]best[/red] 0.9" in shown.get()
    assert "\x1b[31m" not in shown.get()


@pytest.mark.parametrize(
    ("seconds", "said"), [(5.4, "5 s"), (89, "89 s"), (150, "2 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_is_said_twice_is_said_once_in_the_command() -> None:
    words = ["net.py", "--budget", "madds=5%", "--budget", "params=1K", "--out", "r", "--seed", "0",
             "--refit", "--ranking", "reconstruction"]  # fmt: skip
    with compress_command.command.make_context("compress", words) as ctx:
        assert isinstance(ctx, click.Context)
        assert compress_command.command_line(ctx) == (
            "compressor compress net.py --budget madds=5% --budget params=1K --out r"
        )


def test_the_command_says_how_it_differs_from_the_defaults() -> None:
    words = ["net.py", "--budget", "madds=5%", "--out", "r", "--no-refit", "--ranking", "taylor"]
    with compress_command.command.make_context("compress", list(words)) as ctx:
        assert isinstance(ctx, click.Context)
        assert set(compress_command.command_line(ctx).split()) == {"compressor", "compress", *words}


def test_an_unknown_ranking_names_the_choices(net: Path, tmp_path: Path) -> None:
    words = ("compress", net, "--budget", "madds=50%", "--out", tmp_path / "run")
    result = call(*words, "--ranking", "best")
    assert result.exit_code == 2
    for name in ("reconstruction", "magnitude", "activation", "taylor", "bn_scale"):
        assert name in result.output
