"""Learning in rounds over the tasks: what goes on in which order, and what passes between tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor import compress_multitask
from compressor.errors import CheckError, DataError, RunError, UsageError
from compressor.files import run_folder
from compressor.multitask import rounds as learning
from compressor.multitask.finding import Shared, find_shared
from compressor.multitask.preparing import prepare, shared_fingerprint
from compressor.multitask.rounds import Features, Pupil, Rounds, learn_in_rounds
from compressor.multitask.task import Task, checked_tasks
from compressor.progress import Event, Progress, silent
from compressor.report.multitask import LearningRow, learning_text
from compressor.run.pipeline import opened_journal
from compressor.run.request import Options, Stopwatch
from compressor.score.finetune import Learner, Recipe
from tests.test_multitask import two

EPOCHS = 3
MATCHING = Rounds(3, "matching", 2.0, 0.4)
FEATURES = Rounds(3, "features", 2.0)


class Net(nn.Module):
    def __init__(self, seed: int, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Shuffled:
    """Training data in another order in each pass."""

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.batches = [torch.randn(16, 4, generator=rng) for _ in range(4)]

    def __iter__(self) -> Any:
        return (self.batches[k] for k in torch.randperm(4))


def pupils(count: int = 3, epochs: int = EPOCHS, **more: Any) -> list[Pupil]:
    """Students that start from networks other than their teachers."""
    found = []
    for number in range(count):
        data = Shuffled(number)
        recipe = Recipe(epochs, learning_rate=1e-2, seed=5, keep="last")
        learner = Learner(Net(number + 50), Net(number), data, lambda _: 0.0, recipe)
        task = Task(f"t{number}", Net(number), data.batches, "head", **more)
        found.append(Pupil(task, learner, data.batches))
    return found


def weights(found: list[Pupil]) -> list[dict[str, Tensor]]:
    return [p.learner.kept().state_dict() for p in found]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def after(how: Rounds, progress: Progress = silent, **more: Any) -> list[dict[str, Tensor]]:
    found = pupils(**more)
    learn_in_rounds(found, EPOCHS, how, 0, progress)
    return weights(found)


def test_without_transfer_rounds_are_the_training_of_each_network_alone() -> None:
    alone = pupils()
    for pupil in alone:
        pupil.learner.learn(EPOCHS)
    for how in (Rounds(), Rounds(2), Rounds(3)):
        assert same(after(how), weights(alone))


@pytest.mark.parametrize("how", [MATCHING, FEATURES])
def test_transfer_of_weight_0_is_none(how: Rounds) -> None:
    assert same(after(replace(how, weight=0.0)), after(Rounds(3)))
    assert replace(how, weight=0.0).fingerprint == Rounds(3).fingerprint


@pytest.mark.parametrize("how", [MATCHING, FEATURES])
def test_transfer_changes_all_that_comes_after_the_first_stage(how: Rounds) -> None:
    one = replace(how, rounds=1)
    first, *others = zip(after(one), after(Rounds()), strict=True)
    assert same([first[0]], [first[1]])  # nobody comes before the very first
    assert not any(same([a], [b]) for a, b in others)
    assert not same(after(how)[:1], after(Rounds())[:1])
    assert same(after(how), after(how))


def test_stages_go_round_the_tasks_and_epochs_are_divided() -> None:
    events: list[Event] = []
    after(Rounds(2), events.append)
    stages = [event.note.split(", score")[0] for event in events]
    assert stages == [
        "t0, round 1 of 2", "t0, round 1 of 2", "t1, round 1 of 2", "t1, round 1 of 2",
        "t2, round 1 of 2", "t2, round 1 of 2", "t0, round 2 of 2", "t1, round 2 of 2",
        "t2, round 2 of 2",
    ]  # fmt: skip
    assert [(e.done, e.total) for e in events] == [(n + 1, 9) for n in range(9)]


@pytest.mark.parametrize("total", [1, 2, 5, 7, 12])
def test_epochs_are_spread_as_evenly_as_can_be(total: int) -> None:
    for rounds in range(1, total + 1):
        plan = Rounds(rounds).epochs(total)
        assert len(plan) == rounds
        assert sum(plan) == total
        assert max(plan) - min(plan) <= 1
        assert plan == sorted(plan, reverse=True)


@pytest.mark.parametrize("how", [MATCHING, FEATURES])
def test_each_stage_learns_from_the_one_before(
    how: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[nn.Module] = []

    def spied(kind: Callable[..., Any]) -> Callable[..., Any]:
        def make(previous: tuple[nn.Module, Any], *more: Any) -> Any:
            met.append(previous[0])
            return kind(previous, *more)

        return make

    for name in ("Matching", "Features"):
        monkeypatch.setattr(learning, name, spied(getattr(learning, name)))
    found = pupils()
    took = learn_in_rounds(found, EPOCHS, how, 0)
    students = [p.learner.student for p in found]
    order = [students.index(model) for model in met]
    assert order == [0, 1, 2, 0, 1, 2, 0, 1]
    assert took.epochs == (1, 1, 1)
    assert 0 < took.transfer_seconds < took.seconds


def test_features_are_drawn_to_those_of_the_encoder_before() -> None:
    gaps = []
    for weight in (0.0, 30.0):
        found = pupils(2, epochs=40)
        learn_in_rounds(found, 40, Rounds(1, "features", weight), 0)
        x = torch.cat(Shuffled(1).batches)
        one, two = (p.learner.student.body(x).detach() for p in found)
        gaps.append(float((one - two).square().mean() / one.var()))
    assert gaps[1] < 0.5 * gaps[0]


def test_the_distance_of_features_is_relative_to_their_variance() -> None:
    other, own = torch.tensor([[0.0, 2.0], [4.0, 6.0]]), torch.tensor([[1.0, 2.0], [4.0, 3.0]])

    class Given:
        def embedding(self, _: Any) -> Tensor:
            return own

    first = nn.Sequential(nn.Identity(), nn.Identity())
    term = Features((first, ["1"]), Given(), 3.0)  # type: ignore[arg-type]
    found = term(first, (other,), torch.tensor(1.0))
    assert float(found) == pytest.approx(1 + 3 * ((1 + 0 + 0 + 9) / 4) / 5)


def test_features_of_other_widths_cannot_pass() -> None:
    found = pupils(2)
    learner = Learner(
        Net(1, width=8), Net(1), Shuffled(1), lambda _: 0.0, Recipe(EPOCHS, keep="last")
    )
    with pytest.raises(DataError, match=r"task 't1': .* 6 numbers .* 8; use matching"):
        learn_in_rounds([found[0], replace(found[1], learner=learner)], EPOCHS, FEATURES, 0)
    learn_in_rounds([found[0], replace(found[1], learner=learner)], EPOCHS, MATCHING, 0)


def test_an_own_augmentation_is_used_and_told_when_it_fails() -> None:
    assert not same(after(MATCHING, augment=lambda x: x * torch.rand(1)), after(MATCHING))
    with pytest.raises(DataError, match="task 't1': augment"):
        after(MATCHING, augment=lambda x: x[1:])


def test_what_diverges_is_named() -> None:
    with pytest.raises(CheckError, match="task 't1': fine-tuning diverged"):
        after(replace(FEATURES, weight=1e38))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"transfer": "all"}, "none, matching, features"),
        ({"weight": -1.0}, "transfer_weight"),
        ({"weight": float("nan")}, "transfer_weight"),
        ({"quantile": 1.0}, "quantile"),
    ],
)
def test_settings_that_cannot_be_are_told(how: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Rounds(**how)


def test_there_is_an_epoch_for_every_round() -> None:
    for how, epochs in ((Rounds(4), 3), (Rounds(2), 0), (Rounds(1, "features"), 0)):
        with pytest.raises(UsageError, match=f"finetune is {epochs}"):
            how.epochs(epochs)
    assert Rounds().epochs(0) == [0]


def test_settings_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"finetune": 2, "rounds": 3},
        {"transfer": "matching"},
        {"finetune": 1, "quantile": 0},
        {"finetune": 1, "transfer_weight": -1},
    ]
    for how in given:
        with pytest.raises(UsageError):
            compress_multitask(two(), budget="madds=50%", out=tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def searched(
    out: Path, how: Rounds, given: list[Task] | None = None, progress: Progress = silent
) -> Shared:
    options = Options(evaluations=3, finetune=2, keep="last")
    members = prepare(checked_tasks(given or two()), "madds=50%", options, silent)
    known = shared_fingerprint(members, "encoder", how)
    with run_folder(out) as folder, opened_journal(folder, known) as journal:
        return find_shared(members, "encoder", journal, Stopwatch(), progress, how)[0]


def test_a_run_that_is_killed_while_it_learns_ends_the_same(tmp_path: Path) -> None:
    how = Rounds(2, "matching")
    whole = searched(tmp_path / "whole", how)
    assert whole.learnt is not None
    assert whole.learnt.epochs == (1, 1)

    def stop(event: Event) -> None:
        if event.stage == "fine-tune" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "run", how, progress=stop)
    events: list[Event] = []
    again = searched(tmp_path / "run", how, progress=events.append)
    assert next(e.done for e in events if e.stage == "search") == 3  # nothing is scored twice
    assert again.losses == whole.losses
    for one, other in zip(whole.found, again.found, strict=True):
        assert same([one.model.state_dict()], [other.model.state_dict()])

    others = [
        (Rounds(), "rounds was"),
        (Rounds(2, "features"), "transfer was"),
        (Rounds(2, "matching", 0.5), "transfer weight was"),
        (Rounds(2, "matching", 1.0, 0.1), "quantile was"),
    ]
    for other_way, told in others:
        with pytest.raises(RunError, match=told):
            searched(tmp_path / "run", other_way)
    given = [replace(two()[0], augment=lambda x: x + 1), two()[1]]
    with pytest.raises(RunError, match="augment code"):
        searched(tmp_path / "run", how, given)


def test_a_page_tells_how_networks_learnt() -> None:
    row = LearningRow((2, 1), "none", 1.0, 0.25, 12.3, 0.0)
    assert "3 epochs in 2 rounds" in learning_text(row)
    assert "nothing passed" in learning_text(row)
    told = learning_text(replace(row, epochs=(1,), transfer="matching", transfer_seconds=4.0))
    assert "1 epoch in 1 round" in told
    assert "matching, weight 1, quantile 0.25, in 12 s, of which transfer took 4 s" in told
    assert "quantile" not in learning_text(replace(row, transfer="features"))
