"""Transfer by distribution matching: its parts by hand, and what it teaches."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import DataError
from compressor.multitask.augmenting import augmented
from compressor.multitask.embedding import Watch, embedded
from compressor.multitask.matching import (
    FORMS,
    SAMPLES,
    Matching,
    Source,
    drawn_sets,
    relation_loss,
    similar_pairs,
    squared_mmd,
)

SETS = 6


def embeddings(seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(SETS, 5, 3, generator=rng, dtype=torch.float64)


def by_hand(one: Tensor, other: Tensor, width: float) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float(((x - y) ** 2).sum()) / (2 * width**2)) for x in a for y in b)

    return (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other)) / len(one) ** 2


def test_the_discrepancy_is_the_mean_of_kernels_as_wide_as_the_median_distance() -> None:
    sets = embeddings()
    rows = sets.flatten(0, 1)
    distances = sorted(
        float((a - b).norm()) for place, a in enumerate(rows) for b in rows[place + 1 :]
    )
    width = distances[(len(distances) - 1) // 2]
    found = squared_mmd(sets)
    assert torch.allclose(found, found.T)
    for i in range(SETS):
        for j in range(SETS):
            assert float(found[i, j]) == pytest.approx(by_hand(sets[i], sets[j], width), abs=1e-9)


def test_the_discrepancy_does_not_change_with_the_scale_of_the_embedding() -> None:
    assert torch.allclose(squared_mmd(embeddings()), squared_mmd(1000 * embeddings()))
    assert not squared_mmd(torch.ones(3, 4, 2)).any()


@pytest.mark.parametrize("quantile", [0.1, 0.25, 0.5])
def test_a_quantile_of_the_pairs_is_similar(quantile: float) -> None:
    mmds = squared_mmd(embeddings())
    similar = similar_pairs(mmds, quantile)
    rows, columns = torch.triu_indices(SETS, SETS, 1)
    alike = similar[rows, columns]
    assert torch.equal(similar, similar.T)
    assert int(alike.sum()) == pytest.approx(quantile * len(rows), abs=1)
    assert mmds[rows, columns][alike].max() < mmds[rows, columns][~alike].min()


def test_the_loss_counts_by_how_much_pairs_stand_in_the_wrong_order() -> None:
    mmds = torch.tensor([[0.0, 0.2, 0.25], [0.2, 0.0, 0.9], [0.25, 0.9, 0.0]])
    alike = torch.eye(3, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True  # 0.2 is to be under 0.25 and 0.9 by 0.1
    assert float(relation_loss(mmds, alike, 0.1)) == pytest.approx((0.05 + 0.0) / 2)
    assert float(relation_loss(mmds, alike, 0.05)) == pytest.approx(0.0, abs=1e-7)
    wrong = torch.eye(3, dtype=torch.bool)
    wrong[1, 2] = wrong[2, 1] = True
    assert float(relation_loss(mmds, wrong, 0.1)) == pytest.approx((0.8 + 0.75) / 2)


def test_there_is_no_loss_without_both_kinds_of_pairs() -> None:
    mmds = squared_mmd(embeddings().requires_grad_())
    for similar in (torch.ones(SETS, SETS), torch.eye(SETS)):
        loss = relation_loss(mmds, similar > 0)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        assert float(loss.detach()) == 0.0


def test_going_down_the_loss_reproduces_the_relations() -> None:
    similar = similar_pairs(squared_mmd(embeddings(1)), 0.3)
    own = embeddings(2).requires_grad_()
    optimizer = torch.optim.Adam([own], lr=0.05)
    assert not torch.equal(similar_pairs(squared_mmd(own), 0.3), similar)
    for _ in range(200):
        optimizer.zero_grad()
        relation_loss(squared_mmd(own), similar).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal(similar_pairs(squared_mmd(own), 0.3), similar)


class Small(nn.Module):
    """A map of two channels, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LeakyReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


def kinds(bright: bool) -> list[tuple[Tensor, Tensor]]:
    """Inputs that every encoder can tell from the other kind's."""
    rng = torch.Generator().manual_seed(0)
    return [
        (5.0 * bright + 0.1 * torch.randn(7, 1, 8, 8, generator=rng), torch.zeros(7))
        for _ in range(3)
    ]


def noisy(x: Tensor) -> Tensor:
    return x + 0.01 * torch.randn(x.shape)


SOURCES = [Source(kinds(bright=False), noisy), Source(kinds(bright=True), noisy)]


def matching(model: nn.Module, weight: float = 1.0) -> Matching:
    random = torch.Generator().manual_seed(0)
    return Matching((model, ["head"]), SOURCES, ["head"], weight, 0.4, random)


def test_sets_that_the_previous_encoder_embeds_alike_are_similar() -> None:
    torch.manual_seed(0)
    similar = matching(Small().eval()).similar
    assert similar.shape == (2 * SAMPLES, 2 * SAMPLES)
    assert not similar[:SAMPLES, SAMPLES:].any()
    assert similar[:SAMPLES, :SAMPLES].float().mean() > 0.5


def test_the_term_leaves_its_gradient_and_nothing_else() -> None:
    torch.manual_seed(0)
    previous, student = Small().eval(), Small().train()
    before, random = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    gradients = []
    for weight in (1.0, 3.0):
        student.zero_grad()
        term = matching(previous, weight)
        loss = term(student, (torch.zeros(1, 1, 8, 8),), torch.tensor(2.0))
        assert not loss.requires_grad
        assert float(loss) >= 2.0
        gradients.append(student.body[0].weight.grad)
        assert term.seconds > 0
    assert torch.allclose(3 * gradients[0], gradients[1], rtol=1e-3)
    assert gradients[0].any()
    assert all(p.grad is None for p in (*previous.parameters(), *student.head.parameters()))
    assert torch.equal(torch.get_rng_state(), random)
    assert student.body[1].training
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_sets_hold_changed_forms_of_different_inputs_of_both_tasks() -> None:
    (sets,) = drawn_sets(SOURCES, torch.device("cpu"), torch.Generator().manual_seed(3))
    assert sets.shape == (2 * SAMPLES, FORMS, 1, 8, 8)
    of_first = {float(x[0, 0, 0, 0]) for x in sets}
    assert len(of_first) == 2 * SAMPLES
    assert sets[:SAMPLES].max() < 1 < sets[SAMPLES:].min()
    other = drawn_sets(SOURCES, torch.device("cpu"), torch.Generator().manual_seed(4))[0]
    assert not torch.equal(sets, other)


def test_inputs_of_other_shapes_cannot_be_compared() -> None:
    other = Source([torch.zeros(4, 1, 9, 9)], noisy)
    with pytest.raises(DataError, match="same shapes"):
        drawn_sets([SOURCES[0], other], torch.device("cpu"), torch.Generator())


def test_images_are_flipped_shifted_and_made_brighter_and_noisy() -> None:
    torch.manual_seed(0)
    x = torch.zeros(64, 2, 16, 16)
    x[:, :, 4, 12] = 10.0
    (found,) = augmented((x,), None)
    places = [divmod(int(one[0].argmax()), 16) for one in found]
    assert {row for row, _ in places} == {2, 3, 4, 5, 6}
    assert {column for _, column in places} == {1, 2, 3, 4, 5, 10, 11, 12, 13, 14}
    levels = found[:, 0, 15].mean(1)
    assert float(levels.std()) == pytest.approx(0.2 * float(x.std()), rel=0.3)
    assert float((found[0, 0, 15] - levels[0]).std()) == pytest.approx(0.05 * float(x.std()), rel=1)


def test_other_numbers_get_noise_and_whole_numbers_stay() -> None:
    torch.manual_seed(0)
    x, ids = torch.randn(9, 50), torch.arange(9)
    noisy_x, same = augmented((x, ids), None)
    assert same is ids
    assert float((noisy_x - x).std()) == pytest.approx(0.05, rel=0.2)
    with pytest.raises(DataError, match="augment="):
        augmented((ids,), None)


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        (lambda x: x[:, :1], "shapes and types"),
        (lambda x: x.double(), "shapes and types"),
        (lambda x: None, "NoneType"),
        (lambda x: x.missing, "AttributeError"),
    ],
)
def test_what_an_augmentation_cannot_do_is_told(augment: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        augmented((torch.zeros(4, 2),), augment)


class Heads(nn.Module):
    """Two heads, one called twice: a map, a sequence, a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Identity(), nn.Linear(4, 2)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Any:
        return self.one(x), self.two(input=x.flatten(2)[:, :, :4]), self.two(x[:, 0, 0, :4])


def test_an_embedding_is_what_the_heads_read_averaged_over_places() -> None:
    x = torch.randn(3, 2, 5, 6)
    found = embedded(Heads(), ["one", "two"], (x,))
    wanted = [x.mean((2, 3)), x.flatten(2)[:, :, :4].mean(1), x[:, 0, 0, :4]]
    assert torch.allclose(found, torch.cat(wanted, 1))


def test_an_embedding_is_of_the_last_pass_and_leaves_no_hooks() -> None:
    model, (x, y) = Heads(), torch.randn(2, 3, 2, 5, 6)
    with Watch(model, ["one"]) as watch:
        model(x)
        model(y)
        assert torch.equal(watch.embedding((y,)), y.mean((2, 3)))
    assert not model._forward_pre_hooks
    assert not model.one._forward_pre_hooks


def test_a_head_that_is_not_called_or_reads_no_vectors_is_told() -> None:
    with pytest.raises(DataError, match="never called 'unused'"):
        embedded(Heads(), ["unused"], (torch.randn(3, 2, 5, 6),))
    model, told = Heads(), r"'one' reads a tensor \[3, 2, 5, 6\] for 4 inputs"
    with Watch(model, ["one"]) as watch:
        model(torch.randn(3, 2, 5, 6))
        with pytest.raises(DataError, match=told):
            watch.embedding((torch.randn(4, 1),))
