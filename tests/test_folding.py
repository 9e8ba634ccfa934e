"""Parametrised weights become plain ones, and the network computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import compressor
from compressor.network.folding import folded
from tests.test_identities import IMAGE, Net, proved


def _older(name: str) -> Callable[[nn.Module], nn.Module]:
    def wrap(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch has newer ones
            wrapped: nn.Module = getattr(nn.utils, name)(module)
            return wrapped

    return wrap


WRAPS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm, older": _older("weight_norm"),
    "spectral_norm, older": _older("spectral_norm"),
}


def parametrised(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return Net(wrap(nn.Conv2d(16, 16, 3, padding=1))).eval()


@pytest.mark.parametrize("name", WRAPS)
def test_a_folded_network_is_plain_computes_the_same_and_can_be_cut(name: str) -> None:
    net = parametrised(WRAPS[name])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain = folded(net)
    assert set(plain.state_dict()) == {
        f"{path}.{leaf}"
        for path in ("stem", "between", "middle", "head")
        for leaf in ("weight", "bias")
    }
    torch.testing.assert_close(plain(*IMAGE), net(*IMAGE))
    assert {layer.name for layer in proved(plain).layers} == {"stem", "between", "middle"}
    torch.testing.assert_close(dict(net.state_dict()), before)
    assert folded(plain) is plain


def test_modes_of_the_modules_stay() -> None:
    net = parametrised(WRAPS["weight_norm"])
    net.middle.train()
    plain = folded(net)
    assert plain.middle.training
    assert not plain.between.training
    assert not plain.training


@pytest.mark.parametrize("name", WRAPS)
def test_a_parametrised_network_is_compressed_and_loaded(name: str, tmp_path: Path) -> None:
    net = parametrised(WRAPS[name])
    images = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    result = compressor.compress(
        net, IMAGE[0], budget="madds=60%", calibration=images, out=tmp_path / "run", evaluations=4
    )
    assert compressor.inspect(net, IMAGE[0]).share == 1.0
    again = compressor.load(tmp_path / "run", parametrised(WRAPS[name]))
    torch.testing.assert_close(again(*IMAGE), result.model(*IMAGE))
