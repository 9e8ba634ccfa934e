"""Fine-tuning keeps the best epoch, is reproducible, and touches neither network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CheckError, DataError
from compressor.progress import Event
from compressor.score.finetune import Learner, Recipe, best_score, fine_tune, kept_score


def network(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, classes)
    ).eval()


def batches(targets: Any = None, n: int = 3) -> list[Any]:
    rng = torch.Generator().manual_seed(7)
    inputs = [torch.randn(16, 6, generator=rng) for _ in range(n)]
    return inputs if targets is None else [(x, targets) for x in inputs]


def closeness(teacher: nn.Module) -> Callable[[nn.Module], float]:
    """Minus the distance to the teacher's answers."""

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return -float(sum((model(x) - teacher(x)).square().mean() for x in batches()))

    return score


def scripted(*values: float) -> Callable[[nn.Module], float]:
    left = list(values)
    return lambda _: left.pop(0)


def equal(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(t, other[n]) for n, t in a.state_dict().items())


def test_the_student_comes_closer_to_the_teacher() -> None:
    teacher, student = network(0), network(1)
    events: list[Event] = []
    tuned, scores = fine_tune(
        student, teacher, batches(), closeness(teacher), Recipe(8, learning_rate=1e-2),
        events.append,
    )  # fmt: skip
    assert len(scores) == 9
    assert max(scores) == best_score(scores) > scores[0]
    assert closeness(teacher)(tuned) == max(scores)
    assert [(e.done, e.total) for e in events] == [(i, 8) for i in range(1, 9)]
    assert not any(m.training for m in tuned.modules())


def test_model_and_teacher_are_not_touched() -> None:
    teacher, student = network(0).train(), network(1)
    student[0].weight.requires_grad_(False)
    before = copy.deepcopy(teacher), copy.deepcopy(student)
    fine_tune(student, teacher, batches(), scripted(0, 1, 2), Recipe(2))
    assert equal(teacher, before[0])
    assert equal(student, before[1])
    assert teacher.training
    assert not student.training
    assert not student[0].weight.requires_grad
    assert all(p.grad is None for net in (teacher, student) for p in net.parameters())


def test_the_same_seed_gives_the_same_network_and_leaves_the_generator() -> None:
    teacher = network(0)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(100 + len(results))
        state = torch.get_rng_state()
        tuned, _ = fine_tune(
            network(1), teacher, batches(), scripted(0, 1, 2), Recipe(2, seed=seed)
        )
        results.append(tuned)
        torch.manual_seed(100 + len(results) - 1)
        assert torch.equal(torch.get_rng_state(), state)
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.9, 0.5, 0.4), "start"),
        ((0.5, 0.6, 0.9), "last"),
        ((0.5, 0.9, 0.6), "middle"),
        ((0.5, 0.5, 0.5), "middle"),  # at a tie one trained epoch beats none
        ((0.5, 0.4, 0.5), "start"),
        ((0.5, NAN, 0.4), "start"),
        ((0.5, NAN, 0.6), "last"),
        ((0.5, 0.7, NAN), "middle"),
        ((NAN, 0.1, NAN), "middle"),
    ],
)
def test_the_best_epoch_is_kept(scores: tuple[float, ...], kept: str) -> None:
    teacher, student = network(0), network(1)
    states: list[dict[str, Tensor]] = []
    left = list(scores)

    def score(model: nn.Module) -> float:
        states.append(copy.deepcopy(model.state_dict()))
        return left.pop(0)

    tuned, found = fine_tune(student, teacher, batches(), score, Recipe(2))
    want = states[("start", "middle", "last").index(kept)]
    assert all(torch.equal(t, want[n]) for n, t in tuned.state_dict().items())
    assert torch.tensor(found).equal(torch.tensor(scores)) or NAN in scores
    assert best_score(found) == max(s for s in scores if s == s)  # noqa: PLR0124  (not NaN)


def test_no_epochs_give_the_same_network() -> None:
    student = network(1)
    tuned, scores = fine_tune(student, network(0), batches(), scripted(0.25), Recipe(0))
    assert equal(tuned, student)
    assert scores == (0.25,)


def test_generators_serve_as_training_data() -> None:
    def once() -> Iterator[Tensor]:
        yield from batches()

    student = network(1)
    tuned, _ = fine_tune(student, network(0), once(), scripted(0, 1, 2), Recipe(2))
    assert not equal(tuned, student)


def test_targets_are_learned_where_they_are_classes() -> None:
    def loss_of_labels(targets: Any) -> float:
        student = network(1)
        recipe = Recipe(10, learning_rate=3e-2, teacher_share=0.2)
        tuned, _ = fine_tune(student, network(0), batches(targets), scripted(*range(11)), recipe)
        with torch.no_grad():
            logits = torch.cat([tuned(x) for x in batches()])
        return float(nn.functional.cross_entropy(logits, torch.full((48,), 2)))

    assert loss_of_labels(torch.full((16,), 2)) < loss_of_labels(None) - 0.3


class Shapes(nn.Module):
    """A model with the output that is asked for."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.body, self.shape = nn.Linear(6, 4), shape

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return {
            "dict": {"boxes": y[:, :2], "classes": [y[:, 2:]], "count": 4},
            "map": y.view(-1, 1, 2, 2),
            "one": y[:, :1],
            "vector": y[:, 0],
            "whole": y,
        }[self.shape]


@pytest.mark.parametrize(
    ("shape", "targets"),
    [("dict", None), ("map", None), ("one", None), ("vector", None), ("whole", torch.zeros(16))],
)
def test_other_outputs_are_matched_value_by_value(shape: str, targets: Any) -> None:
    torch.manual_seed(0)
    teacher, student = Shapes(shape).eval(), Shapes(shape).eval()

    def score(model: nn.Module) -> float:
        leaves = torch.utils._pytree.tree_leaves
        x = batches()[0]
        with torch.no_grad():
            pairs = zip(leaves(model(x)), leaves(teacher(x)), strict=True)
            return -sum(float((a - b).abs().max()) for a, b in pairs if isinstance(a, Tensor))

    _, scores = fine_tune(student, teacher, batches(targets), score, Recipe(20, learning_rate=3e-2))
    assert max(scores) > scores[0] * 0.7


def test_a_single_value_has_no_spread_but_can_be_matched() -> None:
    torch.manual_seed(0)
    teacher, student = Shapes("vector").eval(), Shapes("vector").eval()
    tuned, _ = fine_tune(student, teacher, [torch.ones(1, 6)], scripted(0, 1), Recipe(1))
    assert not equal(tuned, student)


def test_a_loss_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(CheckError, match=r"the loss became nan.*0\.0003"):
        fine_tune(network(1), network(0), [torch.full((4, 6), NAN)], scripted(0, 1), Recipe(1))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ([], "training data must hold at least one batch"),
        ([torch.zeros(4, 9)], r"training batches must fit.*\[4, 9\].*RuntimeError"),
        ([(torch.zeros(4, 6), torch.full((4,), 17))], "targets torch.int64.*IndexError"),
        ([torch.zeros(1, 6)], "more than 1 value per channel"),
    ],
)
def test_training_data_that_does_not_fit(training: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fine_tune(network(1), network(0), training, scripted(0, 1), Recipe(1))


def test_a_model_without_tensors_to_match() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.body(x).argmax(1).tolist()

    with pytest.raises(DataError, match="returned list; use --finetune 0"):
        fine_tune(Words(), Words(), batches(), scripted(0, 1), Recipe(1))


def test_a_score_that_raises_names_the_epoch() -> None:
    def score(_: nn.Module) -> float:
        if left.pop():
            return 0.5
        raise OSError("images are gone")

    left = [False, True]
    with pytest.raises(DataError, match="the network after epoch 1, but raised OSError: images"):
        fine_tune(network(1), network(0), batches(), score, Recipe(1))


@pytest.mark.parametrize(
    ("scores", "kept"), [((5, 1, 2), 2), ((5, 1, math.nan), 1), ((5, math.nan, math.nan), 0)]
)
def test_the_last_epoch_is_kept_on_demand(scores: tuple[float, ...], kept: int) -> None:
    """Whatever it scores, if that is a number."""
    states: list[dict[str, Tensor]] = []

    def score(model: nn.Module) -> float:
        states.append(copy.deepcopy(model.state_dict()))
        return scores[len(states) - 1]

    tuned, found = fine_tune(network(1), network(0), batches(), score, Recipe(2, keep="last"))
    assert all(torch.equal(v, states[kept][k]) for k, v in tuned.state_dict().items())
    assert kept_score(found, "last") == scores[kept]
    assert kept_score(found, "best") == 5


class Shuffled:
    """Batches in another order in each pass."""

    def __iter__(self) -> Iterator[Any]:
        found = batches(torch.arange(16) % 3)
        return (found[k] for k in torch.randperm(len(found)))


def test_epochs_in_several_goes_are_the_same_training_as_in_one() -> None:
    teacher = network(0)
    score, recipe = closeness(teacher), Recipe(5, learning_rate=1e-2, keep="last")
    whole, scores = fine_tune(network(1), teacher, Shuffled(), score, recipe)
    parts = Learner(network(1), teacher, Shuffled(), score, recipe)
    for epochs in (2, 1, 2):
        parts.learn(epochs)
        torch.rand(7)  # whatever is drawn between two goes
    assert parts.scores == scores
    assert equal(parts.kept(), whole)


def test_a_term_changes_the_loss_and_may_leave_gradients() -> None:
    def halved(student: nn.Module, inputs: Any, loss: Tensor) -> Tensor:
        assert student.training
        assert [list(x.shape) for x in inputs] == [[16, 6]]
        (loss / 2).backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return loss / 2

    teacher = network(0)
    found = []
    for term in (None, halved):
        learner = Learner(network(1), teacher, batches(), closeness(teacher), Recipe(2))
        learner.learn(2, term=term)
        found.append(learner.scores)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    learner = Learner(network(1), teacher, batches(), closeness(teacher), Recipe(2))
    with pytest.raises(CheckError, match="diverged"):
        learner.learn(2, term=lambda *_: torch.tensor(NAN))
