"""Scores that are means over images, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.errors import DataError, UsageError
from compressor.network.data import divided
from compressor.score.judge import Judge, make_judge


class Shaped(nn.Module):
    """Gives its input times a factor back, in some form."""

    def __init__(self, form: Any = None, factor: float = 1.0) -> None:
        super().__init__()
        self.form = form or (lambda x: x)
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        return self.form(self.factor * x)


# Logits whose class probabilities are 1/4, 3/4 and 1/2, 1/2.
LOGITS = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])


def test_top1_is_the_share_of_right_answers() -> None:
    batches = [(LOGITS, torch.tensor([1, 1])), (LOGITS[:1], torch.tensor([1]))]
    assert make_judge("top1", batches, Shaped())(Shaped()) == 2 / 3


def test_loss_is_minus_the_cross_entropy() -> None:
    batches = [(LOGITS, torch.tensor([0, 1])), (LOGITS[:1], torch.tensor([1]))]
    expected = (math.log(1 / 4) + math.log(1 / 2) + math.log(3 / 4)) / 3
    assert make_judge("loss", batches, Shaped())(Shaped()) == pytest.approx(expected, abs=1e-7)


def test_agreement_is_minus_the_divergence_from_the_original() -> None:
    # Doubled logits of the first image: probabilities 1/10, 9/10; the second's do not change.
    judge = make_judge("agreement", [LOGITS], Shaped(), 1.0)
    divergence = 1 / 4 * math.log(10 / 4) + 3 / 4 * math.log((3 / 4) / (9 / 10))
    assert judge(Shaped(factor=2.0)) == pytest.approx(-divergence / 2, abs=1e-7)
    assert judge.values(0, 2 * LOGITS, None).tolist() == pytest.approx([-divergence, 0.0], abs=1e-7)


def test_a_temperature_softens_both_answers() -> None:
    # Logits divided by 2: probabilities by the roots, 1 / (1 + √3); doubled ones then as they were.
    judge = make_judge("agreement", [LOGITS], Shaped(), 2.0)
    less = 1 / (1 + math.sqrt(3))
    divergence = less * math.log(less / (1 / 4)) + (1 - less) * math.log((1 - less) / (3 / 4))
    assert judge(Shaped(factor=2.0)) == pytest.approx(-divergence / 2, abs=1e-7)
    assert judge(Shaped()) == 0.0


def test_a_constant_on_all_logits_is_no_disagreement() -> None:
    judge = make_judge("agreement", [LOGITS], Shaped())
    assert judge(Shaped(lambda x: x + 5)) == pytest.approx(0.0, abs=1e-7)


FORMS = [
    lambda x: {"maps": x, "number": 3},
    lambda x: (x, [x]),
    lambda x: x[:, :, None, None].expand(-1, -1, 2, 2),
    lambda x: x[:, :1],  # one number is no class
    lambda x: x.sum(1),
]


@pytest.mark.parametrize("form", FORMS)
def test_other_outputs_are_compared_by_their_relative_square(form: Any) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    judge = make_judge("agreement", [x, x[:1]], Shaped(form))
    assert judge(Shaped(form)) == 0.0
    # 1.5 times an output is off by half of it: a quarter of its square.
    assert judge(Shaped(form, 1.5)) == pytest.approx(-0.25)


def test_tensors_of_an_output_weigh_the_same_whatever_their_size() -> None:
    def original(x: Tensor) -> Any:
        return {"large": 1000 * x, "small": x}

    def changed(x: Tensor) -> Any:
        return {"large": 1000 * x, "small": 2 * x}

    judge = make_judge("agreement", [torch.ones(3, 4)], Shaped(original))
    assert judge(Shaped(changed)) == pytest.approx(-0.5)


def test_agreement_with_an_output_of_zeros_is_finite() -> None:
    judge = make_judge("agreement", [torch.zeros(2, 3, 4)], Shaped())
    assert judge(Shaped()) == 0.0
    assert -math.inf < judge(Shaped(lambda x: x + 1)) < 0.0


@pytest.mark.parametrize(
    "form",
    [lambda _: "text", lambda x: x.argmax(1), lambda x: x.sum(), lambda x: (x, torch.zeros(7, 4))],
)
def test_outputs_that_cannot_be_compared(form: Any) -> None:
    judge = make_judge("agreement", [LOGITS], Shaped(form))
    with pytest.raises(DataError, match="define score"):
        judge(Shaped(form))


@pytest.mark.parametrize("form", [lambda x: x, lambda x: {"maps": x[:, :, None]}])
def test_outputs_of_another_device_are_compared_there(form: Any) -> None:
    judge = make_judge("agreement", [LOGITS], Shaped(form))
    # A meta tensor stands in for a GPU's: all but bringing the result back works.
    with pytest.raises(NotImplementedError, match="copy out of meta tensor"):
        judge.values(0, form(LOGITS.to("meta")), None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("form", FORMS)
def test_the_originals_outputs_wait_on_the_cpu(form: Any) -> None:
    def network(factor: float) -> nn.Module:
        model = Shaped(form, factor)
        model.place = nn.Parameter(torch.zeros(()))
        return model.cuda()

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    judge = make_judge("agreement", [x, x[:1]], network(1.0))
    kept = [leaf for leaf in tree_leaves(judge.references) if isinstance(leaf, Tensor)]
    assert {leaf.device.type for leaf in kept} == {"cpu"}
    assert judge(network(1.5)) == pytest.approx(-0.25)


def test_names_that_are_no_score() -> None:
    with pytest.raises(UsageError, match="top1, loss, agreement, but got 'top5'"):
        make_judge("top5", [LOGITS], Shaped())


def test_labels_decide_the_default() -> None:
    labelled = [(LOGITS, torch.tensor([1, 0]))]
    assert make_judge(None, labelled, Shaped()).name == "top1"
    assert make_judge(None, [LOGITS], Shaped()).name == "agreement"
    assert make_judge("agreement", labelled, Shaped())(Shaped()) == 0.0


@pytest.mark.parametrize("name", ["top1", "loss"])
def test_labels_are_asked_for_where_they_are_needed(name: str) -> None:
    with pytest.raises(DataError, match=f"{name.replace('top1', 'top-?1')}.*inputs alone"):
        make_judge(name, [LOGITS], Shaped())(Shaped())


def test_no_images_no_score() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        Judge("top1", [])(Shaped())


def test_judged_in_evaluation_mode_and_the_modes_come_back() -> None:
    model = nn.Sequential(nn.Dropout(0.99), nn.Dropout(0.99), Shaped()).train()
    model[1].eval()
    judge = make_judge("agreement", [LOGITS], model)
    assert judge(model) == 0.0
    assert [m.training for m in model] == [True, False, True]
    assert model.training


# ---- one set to calibrate with and to judge by


def test_a_quarter_of_the_batches_judges() -> None:
    batches = [torch.full((2, 1), float(i)) for i in range(8)]
    calibrating, judging = map(list, divided(batches))
    assert [*calibrating, *judging] == batches
    assert len(judging) == 2


def test_few_batches_are_divided_within_the_last() -> None:
    x, y, labels = torch.arange(8.0)[:, None], torch.ones(8, 2), torch.arange(8)
    first = (x, y), labels
    calibrating, judging = map(list, divided([first, first]))
    assert len(calibrating) == 2
    assert calibrating[0] is first
    (inputs, targets), (rest, wanted) = calibrating[1], judging[0]
    assert [len(t) for t in (*inputs, targets, *rest, wanted)] == [6, 6, 6, 2, 2, 2]
    assert torch.equal(torch.cat([inputs[0], rest[0]]), x)
    assert torch.equal(torch.cat([targets, wanted]), labels)


def test_inputs_alone_are_divided_into_inputs_alone() -> None:
    calibrating, judging = map(list, divided([LOGITS]))
    assert torch.equal(calibrating[0][0][0], LOGITS[:1])
    assert make_judge(None, judging, Shaped())(Shaped()) == 0.0


def test_one_image_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="at least two inputs"):
        divided([LOGITS[:1]])
