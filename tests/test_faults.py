"""Disks that fill up, locks, memory that runs out, numbers that are none, data that changes."""

from __future__ import annotations

import ast
import errno
import math
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import compressor
from compressor import files
from compressor.deploy import artefacts
from compressor.device import agent
from compressor.errors import CompressorError, DataError, RunError
from compressor.files import JOURNAL, run_folder
from compressor.progress import Event
from compressor.refit.sequence import Refitter
from compressor.report.result import RunSummary
from compressor.run.recognition import UNKNOWN, code_hash, training_hash
from compressor.run.request import Stopwatch
from compressor.score.few import out_of_memory
from compressor.score.judge import make_judge
from compressor.search import journal as journals
from compressor.search.journal import Journal
from compressor.search.outcome import Outcome
from tests.test_library import images
from tests.test_pipeline import FILES, Score, compress, data, interrupted, model, without_export
from tests.test_trials import candidates, library, trials

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    without_export(monkeypatch)


# ---- disks


class Disk:
    """No file can grow beyond some bytes, as on a disk that is full."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._most, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.mark.usefixtures("stub")
def test_a_disk_that_fills_up_at_any_byte_loses_nothing(tmp_path: Path) -> None:
    whole = compress(tmp_path / "whole", evaluations=4)
    sizes = sorted(p.stat().st_size for p in whole.run.iterdir())
    out = tmp_path / "run"
    for most in (0, 5000, sizes[-1] // 2, sizes[-1] - 500):  # times in it vary in length
        with Disk(most), pytest.raises(CompressorError) as told:
            compress(out, evaluations=4)
        assert str(told.value)
        left = {p.name for p in out.iterdir()} if out.is_dir() else set()
        assert left <= FILES  # nothing that is not whole, and nothing under another name
        if left:
            with Journal.read(out / JOURNAL) as journal:
                assert journal.evaluations()
    again = compress(out, evaluations=4)
    assert again.summary.scored == whole.summary.scored
    assert {p.name for p in out.iterdir()} == FILES


@pytest.mark.usefixtures("stub")
def test_a_disk_that_is_full_at_any_file_leaves_whole_files_and_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compress(tmp_path / "whole", evaluations=2)
    calls: list[int] = []
    full = [0]

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)
    out, score = tmp_path / "run", Score()
    for full[0] in range(1, 6):
        calls.clear()
        with pytest.raises(RunError, match="No space left on device; free some space"):
            compress(out, evaluations=2, score=score)
        assert {p.name for p in out.iterdir()} <= FILES
        assert (out / JOURNAL).is_file()
        for name in ("model.onnx", "model.safetensors", "architecture.json"):
            if (out / name).exists():
                assert (out / name).read_bytes() == (whole.run / name).read_bytes()
        if (out / "result.json").exists():
            assert RunSummary.read(out).architecture == whole.summary.architecture
    assert score.calls == 2 + 2 * 5  # each candidate once; the original and the end each time
    assert calls == [1] * 5


@pytest.mark.usefixtures("stub")
def test_what_a_killed_run_was_writing_is_gone_after_the_next(tmp_path: Path) -> None:
    compress(tmp_path / "run", evaluations=2)
    (tmp_path / "run" / ".model.safetensors.ab3_x9z1").write_bytes(b"half")
    (tmp_path / "run" / ".hidden").write_text("mine")
    compress(tmp_path / "run", evaluations=2)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {*FILES, ".hidden"}


def test_a_locked_journal_says_that_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_PATIENCE", 0.05)
    path = tmp_path / JOURNAL
    with Journal.open(path, {}) as journal:
        journal.record((1,), Outcome(0.5, "", 1.0), {})
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match=r"locked by another; wait until it is done"):
            journal.record((2,), Outcome(0.5, "", 1.0), {})
        with Journal.read(path) as reader:  # as `report --trace` reads a run that goes on
            assert list(reader.outcomes()) == [(1,)]
        other.execute("COMMIT")
        other.close()
        journal.record((2,), Outcome(0.5, "", 1.0), {})
    with Journal.open(path, {}) as journal:
        assert list(journal.outcomes()) == [(1,), (2,)]


def test_a_second_process_is_kept_out_of_a_run_directory(tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; from compressor.files import run_folder\n"
        "with run_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'journal.sqlite').touch(); print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "in\n"
        with pytest.raises(RunError, match="one process works in a run directory"), run_folder(out):
            pass
        other.kill()
    with run_folder(out) as folder:
        assert folder == out


# ---- memory


def failing(error: Exception, most: int) -> tuple[Callable[[Any], Any], list[int]]:
    """A network's pass that has no memory for more than so many images; and what it was shown."""
    shown: list[int] = []

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shown.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise error

    return before, shown


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_where_memory_runs_out_fewer_images_are_shown_at_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make_judge("agreement", images(2), library().model)
    plain, ours = trials(judge), trials(judge)
    before, shown = failing(error, 5)
    first, second = candidates(2)
    hooked = ours.network(first)
    refit = Refitter.consumers

    def consumers(self: Refitter, network: nn.Module, *how: Any) -> None:
        refit(self, network, *how)
        if network is hooked:  # from here on it is judged
            handles.append(network.register_forward_pre_hook(before))

    def again(self: Refitter, architecture: Any, since: int = 0) -> Any:
        while handles:
            handles.pop().remove()
        return touched(self, architecture, since)

    handles: list[Any] = []
    touched = Refitter.touched
    monkeypatch.setattr(Refitter, "consumers", consumers)
    monkeypatch.setattr(Refitter, "touched", again)
    assert ours(first) == pytest.approx(plain(first), rel=1e-6)
    assert ours.most == 4
    shown.clear()
    assert ours(second) == pytest.approx(plain(second), rel=1e-6)
    assert max(shown) == 4


def test_a_candidate_that_never_fits_is_recorded_and_others_go_on() -> None:
    judge = make_judge("agreement", images(2), library().model)
    ours = trials(judge)
    before, _ = failing(MemoryError("too large"), 0)
    first, second = candidates(2)
    handle = ours.network(first).register_forward_pre_hook(before)
    with pytest.raises(MemoryError):
        ours(first)
    handle.remove()
    assert ours(second) == pytest.approx(trials(judge)(second), rel=1e-6)


def test_other_errors_are_no_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("out of memory"))
    told = DataError("the model must run")
    told.__cause__ = MemoryError()
    assert out_of_memory(told)


# ---- numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["body.0.0.weight", "body.0.1.running_var", "head.bias"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, name: str, value: float) -> None:
    net = model()
    with torch.no_grad():
        net.state_dict()[name].view(-1)[1] = value
    with pytest.raises(DataError, match=rf"but 1 of the \d+ values of '{name}' are NaN or infin"):
        compress(tmp_path / "run", model=net)
    assert list(tmp_path.iterdir()) == []


def test_infinities_in_other_buffers_are_meant(tmp_path: Path) -> None:
    net = model()
    net.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    compressor.run.request.require_finite(net)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["calibration", "validation", "training"])
def test_data_that_is_no_number_is_named(tmp_path: Path, what: str, value: float) -> None:
    given = data()
    given[1][0][3, 0, 0, 0] = value
    more: dict[str, Any] = {"validation": data(1), what: given, "finetune": 1, "evaluations": 2}
    with pytest.raises(DataError, match=rf"input 3 of batch 2 of {what} data holds NaN or infin"):
        compress(tmp_path / "run", **more)


def test_large_finite_numbers_are_data() -> None:
    x = torch.full((2, 3, 8, 8), 3e38)
    x[0] = -x[0]
    assert len(list(compressor.run.request.watched([x], "data"))) == 1


# ---- loaders


class Shuffled:
    """Shuffles with a generator that nobody holds fast."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches, self._rng = batches, random.Random(0)  # noqa: S311

    def __iter__(self) -> Iterator[Any]:
        order = list(self._batches)
        while order[0] is self._batches[0]:
            self._rng.shuffle(order)
        return iter(order)


class Endless:
    """The first pass is whole; later ones end early, or give more."""

    def __init__(self, batches: list[Any], later: int) -> None:
        self._batches, self._later, self._passes = batches, later, 0

    def __iter__(self) -> Iterator[Any]:
        self._passes += 1
        first = self._passes <= 3  # what checks the form looks at the first batch alone
        return iter(self._batches if first else (self._batches * 2)[: self._later])


class Raising:
    """Gives one batch and then fails."""

    def __iter__(self) -> Iterator[Any]:
        yield data()[0]
        raise OSError("the images are gone")


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("what", ["calibration", "validation"])
def test_a_loader_that_shuffles_is_detected(tmp_path: Path, what: str) -> None:
    more = {"validation": data(1, 4), what: Shuffled(data(2, 4))}
    with pytest.raises(DataError, match=f"{what} data must be the same in every pass, but batch"):
        compress(tmp_path / "run", **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(("later", "said"), [(1, "ended after 1 batches"), (5, "gave more than")])
def test_a_loader_of_changing_length_is_detected(tmp_path: Path, later: int, said: str) -> None:
    with pytest.raises(DataError, match=f"validation data must be the same .*{said}"):
        compress(tmp_path / "run", validation=Endless(data(1, 3), later))


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("what", ["calibration", "validation", "training"])
@pytest.mark.parametrize("make", [Raising, lambda: iter(Raising())])
def test_a_loader_that_raises_is_named(tmp_path: Path, what: str, make: Any) -> None:
    more = {"validation": data(1), what: make(), "finetune": 1, "evaluations": 2}
    with pytest.raises(DataError, match=rf"{what} data .* after 1 of them it raised OSError: the"):
        compress(tmp_path / "run", **more)


def test_training_data_may_be_shuffled_and_has_its_length() -> None:
    loader = DataLoader(TensorDataset(torch.randn(9, 3)), batch_size=4, shuffle=True)
    found = compressor.run.request.watched(loader, "training data", same=False)
    assert [len(x) for (x,) in found] == [len(x) for (x,) in found] == [4, 4, 1]
    assert found.__length_hint__() == 3

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.randn(4, 3))

    stream = compressor.run.request.watched(DataLoader(Stream()), "training data", same=False)
    assert stream.__length_hint__() is NotImplemented


# ---- clocks


def test_durations_are_taken_from_clocks_that_nobody_sets() -> None:
    for package in ("compressor", "cli", "adapters"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            assert not named & {"time.time", "datetime.now", "datetime.datetime.now"}, path


def test_a_clock_that_jumps_leaves_measurements_and_stages_sane() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    def runner() -> None:
        now[0] += 3600.0 * (len(calls) == 40)  # the machine slept
        calls.append(1)

    calls: list[int] = []
    import numpy as np  # noqa: PLC0415

    schedule = {"warmup": 5, "repeats": 3, "rounds": 12, "seconds": 1e9}
    schedule["seconds"] = 100.0
    (turns,) = agent.time_runners([runner], schedule, clock, np.random.default_rng(0))
    assert len(turns) >= 12
    middle = sorted(sorted(turn)[1] for turn in turns)[len(turns) // 2]
    assert middle == pytest.approx(0.001)
    ticks = iter([10.0, 11.0, 15.0, 16.0])
    watch = Stopwatch(lambda: next(ticks))
    with watch.stage("search"):
        pass
    assert (watch.stages, watch.seconds) == ({"search": 4.0}, 6.0)


# ---- recognising a run


@pytest.mark.usefixtures("stub")
def test_another_score_or_training_data_is_another_run(tmp_path: Path) -> None:
    def other(net: nn.Module) -> float:
        return -Score()(net)

    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", score=interrupted(4))
    with pytest.raises(RunError, match=r"score code was .* and is now"):
        compress(tmp_path / "run", score=other)

    def stop(event: Event) -> None:
        if event.stage == "search" and event.done == 2:
            raise KeyboardInterrupt

    how = {"validation": data(1), "score_epochs": 1, "evaluations": 3}
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "tuned", training=data(2), progress=stop, **how)
    with pytest.raises(RunError, match=r"training data was .* and is now"):
        compress(tmp_path / "tuned", training=data(3), **how)


def helper(net: nn.Module) -> float:
    return float(len(list(net.parameters())))


def scored(net: nn.Module) -> float:
    return helper(net)


def test_the_code_of_a_score_is_what_it_reaches_in_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = code_hash(scored)
    assert before == code_hash(scored) != code_hash(helper)
    monkeypatch.setitem(globals(), "helper", other_helper)
    assert code_hash(scored) != before
    assert code_hash(Score()) == code_hash(Score(lambda _: 1.0)) == code_hash(Score)
    assert code_hash(len) == UNKNOWN
    typed: dict[str, Any] = {}
    exec("def typed(net): return 1.0", typed)  # noqa: S102  (as in a shell)
    assert code_hash(typed["typed"]) == UNKNOWN


def other_helper(net: nn.Module) -> float:
    return 1.0


def test_training_data_that_always_differs_is_not_recognised() -> None:
    loader = DataLoader(TensorDataset(torch.arange(99.0)), batch_size=4, shuffle=True)
    assert training_hash(loader) == training_hash(loader) != UNKNOWN
    assert training_hash(Shuffled(data(2, 6))) == UNKNOWN


# ---- files that are not what they seem


def test_weights_of_another_type_or_size_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    net, space = library().model, library().space
    small = artefacts.materialise(net, space, space.smallest)
    artefacts.save(tmp_path, small, space, space.smallest)
    artefacts.load(tmp_path, net)
    path = tmp_path / artefacts.WEIGHTS
    whole = tmp_path / "whole"
    shutil.copyfile(path, whole)
    save_file({name: t.double() for name, t in load_file(path).items()}, path)
    with pytest.raises(RunError, match=r"is torch\.float64 in the run, but torch\.float32"):
        artefacts.load(tmp_path, net)
    shutil.copyfile(whole, path)
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(RunError, match=r"holds 1,073,741,824 bytes, but the model takes"):
        artefacts.load(tmp_path, net)
