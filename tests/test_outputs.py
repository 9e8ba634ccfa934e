"""Networks that return dataclasses, dicts and tuples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.deploy.export import export_onnx
from compressor.network.outputs import output_tensors
from compressor.network.structure import mask, materialise
from tests.test_identities import IMAGE, Net, proved


@dataclass
class Inner:
    scores: Tensor


@dataclass
class Result:
    logits: Tensor
    inner: Inner
    note: str | None = None


class Packed(nn.Module):
    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.pack = Net(nn.ReLU()), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.net(x))


@pytest.mark.parametrize(
    "pack",
    [
        lambda y: Result(y, Inner(y.softmax(1))),
        lambda y: {"logits": y, "all": [y.softmax(1)]},
        lambda y: (y, (y.softmax(1),)),
    ],
)
def test_outputs_of_any_form_are_compared_and_exported(
    pack: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = Packed(pack).eval()
    space = proved(net)
    assert {layer.name for layer in space.layers} == {"net.stem", "net.middle"}
    small = materialise(net, space, space.smallest)
    got, want = (output_tensors(m(*IMAGE)) for m in (small, mask(net, space, space.smallest)))
    assert [list(t.shape) for t in got] == [[1, 5], [1, 5]]
    torch.testing.assert_close(got, want)
    report = export_onnx(small, IMAGE, tmp_path / "small.onnx")
    assert report.max_difference < 1e-4
