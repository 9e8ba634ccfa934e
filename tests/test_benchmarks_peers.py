"""The benchmark beside other tools: what holds without the tools, and without the shared data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import environment, protocol
from benchmarks.peers.protocol import Attempt, Judged, Made, Request, Row, Timing
from benchmarks.peers.rows import caller, make_row, run_child, with_timings
from benchmarks.peers.table import markdown
from benchmarks.peers.target import reach

MADE = Made(
    madds=50_200,
    params=700,
    madds_share=0.502,
    params_share=0.7,
    target=0.5,
    seconds=12.3,
    cpu_seconds=20.0,
    memory_mib=500.4,
    memory_before_mib=300.0,
    score_calls=82,
    stages={"search": 10.0},
    attempts=(Attempt(0.5, 0.4, 9.0), Attempt(0.6, 0.502, 3.0)),
    notes=("asked for 60 %",),
)
JUDGED = Judged(returned=47.6, recalibrated=84.5)
REQUEST = Request("digits", "fastnas", "madds=50%")


def row(seed: int = 0, method: str = "fastnas") -> Row:
    return Row(method, "madds=50%", seed, MADE, JUDGED, Timing(0.9, 0.61, 0.6, 0.63))


# --- to the target ---------------------------------------------------------------------------


def test_a_tool_that_gives_what_it_is_asked_for_is_asked_once() -> None:
    reached = reach(lambda share: (share, share), 0.5)
    assert (reached.product, reached.index, len(reached.attempts)) == (0.5, 0, 1)


@pytest.mark.parametrize("rule", [lambda s: s**2, lambda s: s**0.5, lambda s: 0.2 + 0.8 * s])
def test_bisection_finds_what_to_ask_for(rule: Callable[[float], float]) -> None:
    reached = reach(lambda share: (f"asked {share:.4f}", rule(share)), 0.5)
    attempt = reached.attempts[reached.index]
    assert abs(attempt.reached - 0.5) <= 0.01 * 0.5
    assert reached.product == f"asked {attempt.requested:.4f}"
    assert reached.attempts[0].requested == 0.5
    assert len(reached.attempts) > 1


def test_a_tool_with_coarse_steps_gives_its_closest() -> None:
    reached = reach(lambda share: (share, 0.43 if share < 0.55 else 0.56), 0.5, tries=6)
    assert len(reached.attempts) == 6
    # and is not asked again and again for what lies between two steps
    assert len(reach(lambda share: (share, 0.43 if share < 0.55 else 0.56), 0.5).attempts) == 9
    assert reached.attempts[reached.index].reached == 0.56
    assert not replace(MADE, madds_share=0.56).on_target


def test_the_tolerance_is_a_share_of_the_target() -> None:
    assert [protocol.within(s, 0.3) for s in (0.2969, 0.2971, 0.3029, 0.3031)] == [0, 1, 1, 0]


def test_no_try_is_an_error() -> None:
    with pytest.raises(ValueError, match="tries must be at least 1, but got 0"):
        reach(lambda share: (share, share), 0.5, tries=0)


# --- what is passed between the processes ----------------------------------------------------


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    for value in (REQUEST, MADE, JUDGED, row()):
        protocol.write(tmp_path / "value.json", value)
        assert protocol.read(type(value), tmp_path / "value.json") == value


def test_every_method_has_a_place() -> None:
    for method in (protocol.ORIGINAL, *protocol.METHODS):
        module, function = protocol.place(method)
        source = (environment.ROOT / (module.replace(".", "/") + ".py")).read_text()
        assert f"\ndef {function}(task: Task, request: Request) -> Product:" in source


# --- children --------------------------------------------------------------------------------


def test_a_child_that_fails_tells_its_last_line(tmp_path: Path) -> None:
    def run(program: str, limit: float = 60) -> str:
        return run_child([sys.executable, "-c", program], tmp_path / "log", limit)

    assert run("print('fine')") == ""
    assert run("raise ValueError('the graph is torn')") == "ValueError: the graph is torn"
    assert run("raise SystemExit(3)") == "exit code 3, without a word"
    killed = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed == "signal 9 ended it; was the memory enough?"
    assert run("import time; time.sleep(60)", limit=0.2) == "it was ended after 0 s"
    assert "could not be started" in run_child([str(tmp_path / "no")], tmp_path / "log", 1)


def make_with(made: str, judged: str = "") -> Callable[[str, Path], str]:
    """Children that write what they should, then fail for the given reasons."""

    def call(step: str, folder: Path) -> str:
        assert protocol.read(Request, folder / protocol.REQUEST) == REQUEST
        if step == "make" and not made:
            protocol.write(folder / protocol.MADE, MADE)
        if step == "judge" and not judged:
            protocol.write(folder / protocol.JUDGED, JUDGED)
        return made if step == "make" else judged

    return call


def test_a_failing_child_becomes_a_row_with_the_reason(tmp_path: Path) -> None:
    failed = make_row(REQUEST, tmp_path / "row", make_with("ImportError: no modelopt"))
    assert failed == Row("fastnas", "madds=50%", 0, reason="make: ImportError: no modelopt")
    judge = make_row(REQUEST, tmp_path / "row", make_with("", "RuntimeError: it does not run"))
    assert (judge.made, judge.judged) == (MADE, None)
    assert judge.reason == "judge: RuntimeError: it does not run"
    fine = make_row(REQUEST, tmp_path / "row", make_with(""))
    assert (fine.made, fine.judged, fine.reason) == (MADE, JUDGED, "")


def test_nothing_of_an_earlier_run_is_taken_for_this_one(tmp_path: Path) -> None:
    make_row(REQUEST, tmp_path / "row", make_with(""))
    assert make_row(REQUEST, tmp_path / "row", make_with("no")).made is None


def test_without_the_original_nothing_is_timed(tmp_path: Path) -> None:
    assert with_timings([row()], [tmp_path], 1) == [row()]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("original", marks=pytest.mark.sweep),
        "ours",
        pytest.param("torch-pruning-global", marks=pytest.mark.sweep),
    ],
)
def test_a_row_from_start_to_end(method: str, tmp_path: Path) -> None:
    """With the tools that the tests have anyway, on the network of the demo."""
    request = Request("digits", method, "madds=50%", finetune=1, evaluations=2)
    found = make_row(request, tmp_path / "row", caller(Path(sys.executable), 1, 300))
    assert found.reason == ""
    assert found.made is not None
    assert found.judged is not None
    shares = (1.0, 1.0) if method == "original" else (0.485, 0.505)
    assert shares[0] <= found.made.madds_share <= shares[1]
    assert found.made.score_calls == (2 if method == "ours" else 0)
    assert found.made.memory_mib >= found.made.memory_before_mib > 50
    assert found.judged.finetuned is not None
    assert found.judged.finetuned >= 90
    (timed,) = with_timings([found], [tmp_path / "row"], 1)
    assert timed.timing is not None
    assert timed.timing.ratio == 1.0


# --- the table -------------------------------------------------------------------------------


def test_the_table() -> None:
    head, rule, line, *rest = markdown([row()]).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line == (
        "| fastnas, madds=50% | 50.2 % | 70.0 % | 47.60 % | 84.50 % | – | 12 s (20 s) | 82 "
        "| 500 MiB | 0.9 ms, 61 % |"
    )
    assert rest == ["", "- fastnas, madds=50%, seed 0: asked for 60 %"]


def test_seeds_share_a_line_with_their_spread() -> None:
    other = replace(row(1), judged=replace(JUDGED, returned=49.6))
    assert "| 48.60 ± 1.41 % | 84.50 ± 0.00 % |" in markdown([row(), other])


def test_a_failure_is_never_missing_from_the_table() -> None:
    failed = Row("fastnas", "madds=50%", 1, reason="make: it was ended after 9 s")
    alone, beside = markdown([failed]), markdown([row(), failed])
    assert "| fastnas, madds=50% | failed, see below | – |" in alone
    assert "| fastnas, madds=50% (1 of 2 seeds) |" in beside
    for text in (alone, beside):
        assert "- fastnas, madds=50%, seed 1: failed: make: it was ended after 9 s" in text


def test_madds_off_the_target_are_told() -> None:
    text = markdown([replace(row(), made=replace(MADE, madds_share=0.43))])
    assert "its MAdds are not within 1% of the target, 43.00% for 50.00%, after 2 attempts" in text


# --- the command -----------------------------------------------------------------------------


def test_the_command_writes_json_and_fails_with_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "python_with_peers", lambda folder: Path(sys.executable))
    monkeypatch.setattr(command, "describe", lambda python: {"cores": 2})
    file = tmp_path / "out.json"
    words = ["--sample", "not_there", "--methods", "ours", "--budget", "madds=50%", "madds=30%"]
    monkeypatch.setattr(sys, "argv", ["peers", *words, "--json", str(file), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 1
    assert "- ours, madds=30%, seed 0: failed: make: FileNotFoundError" in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["environment"] == {"cores": 2}
    assert report["settings"]["seeds"] == [0]
    found = [(r["method"], r["budget"]) for r in report["rows"]]
    assert found == [("original", "madds=50%"), ("ours", "madds=50%"), ("ours", "madds=30%")]


@pytest.mark.parametrize("budget", ["half", "latency=50%"])
def test_a_budget_that_not_all_can_hold_is_refused(
    budget: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--budget", budget])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    assert "budget" in capsys.readouterr().err


def test_the_benchmark_itself_needs_no_torch() -> None:
    program = "import sys, benchmarks.peers.__main__; sys.exit('torch' in sys.modules)"
    reason = run_child([sys.executable, "-c", program], Path("/dev/null"), 60)
    assert reason == ""
