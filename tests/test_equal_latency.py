"""What torch-pruning cuts, said in choices of our search layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from benchmarks.equal_latency import as_space, removed_by
from compressor.network.structure import materialise
from compressor.run.reading import read_network
from tests import networks

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network", [networks.Residual, networks.Separable])
@pytest.mark.parametrize("round_to", [1, 4])
def test_the_same_network_as_torch_pruning_makes(network: Any, round_to: int) -> None:
    torch.manual_seed(0)
    model = network().eval()
    removed = removed_by(model, EXAMPLE, 0.6, round_to)
    assert any(removed.values())
    space, architecture = as_space(read_network(model, (EXAMPLE,)).space, removed)
    theirs = copy.deepcopy(model).requires_grad_(True)
    tp.pruner.BasePruner(
        theirs, EXAMPLE, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=0.4,
        round_to=round_to, ignored_layers=[m for m in theirs.modules() if isinstance(m, nn.Linear)],
    ).step()  # fmt: skip
    with torch.no_grad():
        ours = materialise(model, space, architecture)(EXAMPLE)
        torch.testing.assert_close(ours, theirs.eval()(EXAMPLE))


def test_what_no_layer_cuts_is_an_error() -> None:
    space = read_network(networks.Residual().eval(), (EXAMPLE,)).space
    with pytest.raises(ValueError, match="no layer of the space cuts"):
        as_space(space, {"elsewhere.weight": {1}})


def test_weights_of_one_layer_that_are_cut_differently_are_an_error() -> None:
    space = read_network(networks.Residual().eval(), (EXAMPLE,)).space
    with pytest.raises(ValueError, match="differently"):
        as_space(space, {"stem.0.weight": {1}, "a2.weight": {2}})
