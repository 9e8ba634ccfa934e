"""Assembled networks: the same as those built from scratch, whatever was assembled before."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.network.data import tensors_hash
from compressor.network.structure import materialise
from compressor.refit.assembly import Assembler
from compressor.refit.library import make_library
from compressor.score.evaluate import recalibrate
from tests.test_library import EXAMPLE, NETWORKS, images, read


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(torch.cat(images(1)))
    return out


def drawn(sizes: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    draw = random.Random(0)  # noqa: S311  (a reproducible sample)
    return [tuple(draw.randrange(size) for size in sizes) for _ in range(count)]


@pytest.mark.parametrize("network", NETWORKS)
def test_without_a_library_assembled_is_materialised(network: Any) -> None:
    model, space = read(network)
    assembler = Assembler(model, space, {})
    for architecture in [*drawn(space.sizes, 4), space.original]:
        wanted = materialise(model, space, architecture).eval()
        assert torch.equal(answers(assembler.assemble(architecture)), answers(wanted))


@pytest.mark.parametrize("network", NETWORKS)
def test_with_a_library_assembled_is_built(network: Any) -> None:
    model, space = read(network)
    library = make_library(model, space, EXAMPLE, images(1))
    assembler = Assembler(model, library.space, library.consumers)
    for architecture in [*drawn(space.sizes, 4), space.original]:
        wanted = answers(library.build(architecture))
        assert torch.equal(answers(assembler.assemble(architecture)), wanted)


def test_changing_a_network_from_the_library_changes_nothing_else() -> None:
    model, space = read(NETWORKS[0])
    library = make_library(model, space, EXAMPLE, images(1))
    before = tensors_hash(model.state_dict().items())
    architecture = drawn(space.sizes, 1)[0]
    wanted = answers(library.build(architecture))
    recalibrate(library.build(architecture), images(2))
    assert torch.equal(answers(library.build(architecture)), wanted)
    assert tensors_hash(model.state_dict().items()) == before


def test_pieces_that_take_too_much_room_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.refit.assembly._MEMORY", 0)
    model, space = read(NETWORKS[0])
    assembler = Assembler(model, space, {})
    for architecture in drawn(space.sizes, 3):
        wanted = materialise(model, space, architecture).eval()
        assert torch.equal(answers(assembler.assemble(architecture)), answers(wanted))


def test_only_modules_of_changed_layers_are_named() -> None:
    model, space = read(NETWORKS[0])
    assembler = Assembler(model, space, {})
    last = (*space.original[:-1], 0)
    tensors = {t for t, _ in space.removed(last)} | set(space.kernels(last))
    assert assembler.changed(space.original, last) == {t.rpartition(".")[0] for t in tensors}
    assert assembler.changed(last, last) == set()
