"""Networks that once broke the refit of candidates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.network.tracing import trace_fates
from compressor.refit.assembly import Assembler
from compressor.refit.folds import Folds
from compressor.refit.library import make_library
from compressor.refit.sequence import Refitter
from compressor.score.few import few_images
from compressor.score.judge import make_judge
from compressor.score.trials import Trials
from tests import networks
from tests.test_library import EXAMPLE, images, loss, middle, read


class FrozenNorm(nn.Module):
    """A BatchNorm whose channels are the output, behind a layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.embed, self.last = nn.Linear(32, 16), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.embed(functional.relu(self.bn(self.one(x))).mean((2, 3))))


class Upsampled(nn.Module):
    """A learned upsampling, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32)
        self.two = nn.Conv2d(32, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(functional.relu(self.up(functional.relu(self.one(x)))))


def trials(network: Any) -> tuple[Trials, Any]:
    model, space = read(network)
    library = make_library(model, space, EXAMPLE, images())
    assembler = Assembler(model, library.space, library.consumers)
    refitter = Refitter(model, library.space, EXAMPLE, few_images(images()), remember=True)
    judge = make_judge("agreement", images(2), model)
    return Trials(model, assembler, refitter, judge, lambda _: True), library


@pytest.mark.parametrize("network", [FrozenNorm, Upsampled])
def test_candidates_and_the_found_network_are_refitted(network: Any) -> None:
    ours, library = trials(network)
    architecture = middle(library.space)
    first = ours(architecture)
    ours(library.space.original)
    assert ours(architecture) == pytest.approx(first, rel=1e-6)
    small = library.build(architecture)
    Refitter(library.model, library.space, EXAMPLE, images()).whole(small, architecture)
    # Nothing has drifted here, so the library has left nothing to gain; nor may it be lost.
    assert loss(library.model, small) <= 1.05 * loss(library.model, library.build(architecture))


def test_a_refit_that_fails_leaves_nothing_to_the_next_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, library = trials(networks.Residual)
    architecture = middle(library.space)
    wanted = ours(architecture)
    ours.network(library.space.original)  # so that there is something to refit
    solved, calls = Folds.solved, []

    def failing(*args: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return solved(*args, **how)

    monkeypatch.setattr(Folds, "solved", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        ours.network(architecture)
    monkeypatch.undo()
    assert ours(architecture) == wanted


def test_a_batchnorm_that_two_outputs_go_through_takes_no_constant() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 16, 3, padding=1)
            self.a, self.b = (nn.Conv2d(16, 8, 3, padding=1, bias=False) for _ in range(2))
            self.bn, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.one(x))
            return self.head(functional.relu(self.bn(self.a(x))) + self.bn(self.b(x)))

    model, _ = read(Shared)
    fates = trace_fates(model, EXAMPLE)
    assert [fates[n].norm for n in ("a", "b")] == [None, None]


def test_cuda_finds_the_same_fates() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: there BatchNorm is another operator")
    model, _ = read(networks.PaddedShortcuts)
    assert trace_fates(model.cuda(), EXAMPLE) == trace_fates(model.cpu(), EXAMPLE)
