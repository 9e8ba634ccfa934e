"""What a run says about its data: counted, hashed, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from compressor.errors import DataError
from compressor.network.data import batches_hash, contents
from compressor.report.words import data_text
from compressor.run.data_used import data_used, hash_of
from compressor.run.request import Options, make_request

X = torch.arange(24.0).reshape(4, 6)
Y = torch.tensor([0, 1, 0, 1])


def used(**given: Any) -> list[str]:
    """The data of a request, in words; calibration is one batch of four with targets."""
    asked = {"validation": None, "training": None, "score": None, **given}
    options = Options(finetune=asked.pop("finetune", 0))
    request = make_request(
        nn.Linear(6, 2), X[:1], ("madds=50%", None), [(X, Y)], asked["validation"],
        asked["training"], asked["score"], options,
    )  # fmt: skip
    rows = data_used(request)
    assert hash_of(rows, "calibration") == batches_hash(request.calibration)
    assert hash_of(rows, "nothing") == ""
    return [f"{row.use}: {data_text(row)}" for row in rows]


def test_data_is_counted() -> None:
    found = used(validation=[X, X[:2]])
    assert found == [
        "calibration: 4 inputs of 6 in 1 batch, with targets",
        "validation: 6 inputs of 6 in 2 batches, without targets",
    ]


def test_a_quarter_that_was_kept_apart_says_so() -> None:
    calibration, validation = used()
    assert calibration == "calibration: 3 inputs of 6 in 1 batch, with targets"
    assert "1 input of 6 in 1 batch" in validation
    assert "there was no validation data" in validation


def test_the_users_own_score_brings_its_own_data() -> None:
    assert len(used(score=lambda model: 1.0)) == 1


class Endless:
    """Training data that would take hours to read."""

    def __iter__(self) -> Iterator[Any]:
        yield (X, Y)
        raise AssertionError("read further than the first batch")


def test_training_data_is_not_read_for_it() -> None:
    (found,) = (row for row in used(training=Endless(), finetune=1) if row.startswith("training"))
    assert found.startswith("training: inputs of 6, with targets; not read as a whole")
    (found,) = (row for row in used(training=[X] * 3, finetune=1) if row.startswith("training"))
    assert found.startswith("training: inputs of 6 in 3 batches, without targets")
    (found,) = (row for row in used(finetune=1) if row.startswith("training"))
    assert found.endswith("the calibration data: there was no training data")
    assert not [row for row in used(training=Endless()) if row.startswith("training")]


def test_contents_of_batches() -> None:
    found = contents([((X, X[:, :2]), Y), (X[:1], X[:1, :2])])
    assert (found.batches, found.inputs, found.shapes, found.targets) == (2, 5, ((6,), (2,)), True)
    with pytest.raises(DataError, match="at least one batch"):
        contents([])
