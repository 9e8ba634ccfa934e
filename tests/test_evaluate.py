"""Batches, BatchNorm statistics and scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from compressor.errors import DataError
from compressor.network.data import as_inputs, batches_hash, keep, split, steady, tensors_hash
from compressor.score.evaluate import attempt, checked_score, recalibrate
from compressor.score.judge import top1
from tests import networks


def images(seed: int, n: int = 8, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---- recalibration


def test_statistics_become_the_plain_mean_over_the_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    net.train()
    net[2].eval()
    batches = [images(s, n=4) * (s + 1) + s for s in range(3)]
    recalibrate(net, [(b, torch.zeros(4)) for b in batches])
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, means)
    torch.testing.assert_close(net[0].running_var, variances)
    assert [m.training for m in net.modules()] == [True, True, True, False]
    assert (net[0].momentum, net[2].momentum) == (0.3, 0.1)


def test_recalibrating_twice_changes_nothing() -> None:
    net = networks.Residual().eval()
    recalibrate(net, [images(0), images(1)])
    first = copy.deepcopy(net.state_dict())
    recalibrate(net, [images(0), images(1)])
    assert all(torch.equal(first[n], t) for n, t in net.state_dict().items())


def test_dropout_stays_off_and_parameters_stay() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)).train()
    weight = net[1].weight.detach().clone()
    recalibrate(net, [torch.ones(2, 3, 4, 4)])
    assert torch.equal(net[1].running_mean, torch.ones(3))
    assert torch.equal(net[1].weight, weight)


def test_what_saw_nothing_keeps_its_statistics() -> None:
    net = networks.Separable()
    net.auxiliary = nn.BatchNorm1d(4)
    with torch.no_grad():
        net.auxiliary.running_mean.fill_(7)
    recalibrate(net, [images(0)])
    assert torch.equal(net.auxiliary.running_mean, torch.full((4,), 7.0))


def test_a_network_without_batchnorm_needs_no_data() -> None:
    recalibrate(nn.Sequential(nn.Linear(2, 2), nn.InstanceNorm1d(2)), [])


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "at least one batch"),
        ([torch.zeros(2, 5, 4, 4)], r"\[2, 5, 4, 4\]"),
        ([torch.zeros(1, 3, 1, 1)], "more than 1 value per channel"),
        ([{"x": 1}], "got dict"),
    ],
)
def test_data_that_cannot_recalibrate(batches: list[Any], said: str) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3)).train()
    with pytest.raises(DataError, match=said):
        recalibrate(net, batches)
    assert net[0].training
    assert net[0].momentum == 0.1


# ---- top-1


class Fixed(nn.Module):
    """Gives its input back as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


LOGITS = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])


def test_top1_by_hand() -> None:
    batches = [(LOGITS, torch.tensor([1, 1, 1])), (LOGITS[:1], torch.tensor([1]))]
    assert top1(Fixed(), batches) == 3 / 4
    assert top1(Fixed(), [(LOGITS, torch.tensor([1, 0, 1], dtype=torch.uint8))]) == 1.0


def test_top1_runs_in_evaluation_mode_and_gives_the_mode_back() -> None:
    net = nn.Sequential(nn.Dropout(0.99), Fixed()).train()
    assert top1(net, [(LOGITS, torch.tensor([1, 0, 1]))]) == 1.0
    assert net.training


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


@pytest.mark.parametrize(
    ("net", "batches", "said"),
    [
        (Fixed(), [LOGITS], "inputs alone"),
        (Fixed(), [], "at least one batch"),
        (Fixed(), [(LOGITS, torch.tensor([1, 0]))], r"integer targets \[3\].*\[2\]"),
        (Fixed(), [(LOGITS, torch.tensor([[1], [0], [1]]))], r"\[3, 1\]"),
        (Fixed(), [(LOGITS, torch.tensor([1.0, 0.0, 1.0]))], "float32"),
        (Fixed(), [(LOGITS[None], torch.tensor([1]))], r"returned \[1, 3, 2\]"),
        (Dictionary(), [(LOGITS, torch.tensor([1, 0, 1]))], "returned dict.*define score"),
        (nn.Linear(5, 2), [(LOGITS, torch.tensor([1, 0, 1]))], r"with shapes \[3, 2\]"),
    ],
)
def test_what_top1_cannot_read(net: nn.Module, batches: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        top1(net, batches)


# ---- the user's own score


@pytest.mark.parametrize("value", [0.5, 1, torch.tensor(0.5), torch.ones(1, requires_grad=True)])
def test_numbers_of_every_kind_are_scores(value: Any) -> None:
    assert checked_score(lambda _: value, Fixed()) == float(torch.as_tensor(value).detach())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", [1, 2], torch.ones(2)])
def test_what_is_no_score_of_the_original(value: Any) -> None:
    with pytest.raises(DataError, match="must return a finite number, but for the original"):
        checked_score(lambda _: value, Fixed())


def test_a_score_that_raises() -> None:
    def score(_: nn.Module) -> float:
        raise KeyError("accuracy")

    with pytest.raises(DataError, match="original network, but raised KeyError: 'accuracy'"):
        checked_score(score, Fixed())
    with pytest.raises(DataError, match="work on the third, but raised KeyError"):
        attempt(score, Fixed(), "the third")


def test_a_score_sees_evaluation_mode_and_may_change_it() -> None:
    seen: list[bool] = []

    def score(model: nn.Module) -> float:
        seen.append(model.training)
        model.train()
        model[0](images(0))
        model.eval()
        return 1.0

    net = nn.Sequential(nn.BatchNorm2d(3), Fixed()).train()
    net[1].eval()
    checked_score(score, net)
    assert seen == [False]
    assert [m.training for m in net.modules()] == [True, True, False]


# ---- batches


PAIR = (images(0), torch.zeros(8))


@pytest.mark.parametrize(
    ("batch", "inputs", "targets"),
    [
        (PAIR[0], 1, False),
        (PAIR, 1, True),
        (list(PAIR), 1, True),
        ((PAIR, PAIR[1]), 2, True),
        ((PAIR[0],), 1, False),  # what a DataLoader of a TensorDataset gives
        ((PAIR,), 2, False),
        ((PAIR, None), 2, False),
    ],
)
def test_forms_of_a_batch(batch: Any, inputs: int, targets: bool) -> None:
    found, wanted = split(batch)
    assert len(found) == inputs
    assert (wanted is not None) is targets


@pytest.mark.parametrize(
    "batch", [None, 3, {"x": PAIR[0]}, (), (*PAIR, PAIR[0]), (PAIR[0], 3), ("ab", PAIR[0]), ([], 1)]
)
def test_what_is_no_batch(batch: Any) -> None:
    with pytest.raises(DataError, match=r"a batch is a tensor \[N, …\]"):
        split(batch)


@pytest.mark.parametrize("example", [None, [], "x", [1], {"x": PAIR[0]}])
def test_what_is_no_example(example: Any) -> None:
    with pytest.raises(DataError, match="an example input must be a tensor"):
        as_inputs(example)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (images(0), "iterable of batches, but got Tensor"),
        (3, "but got int"),
        ([], "is empty"),
        (iter([]), "is empty"),
        ([torch.zeros(0, 3)], "the first is empty"),
        ([torch.tensor(1.0)], "the first is empty"),
        (["ab"], "got str"),
    ],
)
def test_data_that_is_not_kept(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        keep(data, "the data")


def test_generators_can_be_read_again() -> None:
    def batches() -> Iterator[Tensor]:
        yield from (images(0), images(1))

    kept = keep(batches(), "data")
    assert len(list(kept)) == len(list(kept)) == 2


def test_a_loader_that_shuffles_gives_the_same_batches_in_every_pass() -> None:
    loader = DataLoader(TensorDataset(torch.arange(32.0)[:, None]), batch_size=8, shuffle=True)
    calm = steady(loader)
    state = torch.get_rng_state()
    first = batches_hash(calm)
    torch.rand(3)
    assert batches_hash(calm) == first
    order = torch.cat([b[0] for b in calm]).flatten()
    assert not torch.equal(order, torch.arange(32.0))
    torch.set_rng_state(state)
    list(calm)
    assert torch.equal(torch.get_rng_state(), state)


def test_hashes_see_names_types_shapes_and_values() -> None:
    x = torch.arange(4.0)
    variants = [
        [("a", x)], [("b", x)], [("a", x.double())], [("a", x.view(2, 2))], [("a", x + 1)],
        [("a", x), ("c", torch.tensor(True))], [("a", x[:0])],
    ]  # fmt: skip
    assert len({tensors_hash(v) for v in variants}) == len(variants)
    strided = torch.stack([x, x], dim=1)[:, 0]
    assert tensors_hash([("a", strided)]) == tensors_hash([("a", x)])
    assert batches_hash([(x, x)]) != batches_hash([x, x])
