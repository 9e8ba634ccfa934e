"""What a reader of a page has already: the files and names that its blocks presume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.deploy.export import export_onnx
from tests.vision import torchvision

NET = """
import torch
from my_project import MyNet, loader

def build_model():
    torch.manual_seed(0)
    return MyNet().eval()

def example_input():
    return torch.zeros(1, 3, 32, 32)

def calibration_data():
    return loader("train")
"""
PROJECT = """
import pytest
import torch
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )

def loader(part):
    generator = torch.Generator().manual_seed(len(part))
    images = torch.randn(64, 3, 32, 32, generator=generator)
    return list(zip(images.split(32), torch.randint(10, (64,), generator=generator).split(32)))
"""


def _my_net() -> nn.Module:
    names: dict[str, Any] = {}
    exec(PROJECT, names)  # noqa: S102
    torch.manual_seed(0)
    net: nn.Module = names["MyNet"]()
    return net.eval()


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(64, 3, 32, 32, generator=generator).split(32))


def _project(*, net: bool) -> None:
    Path("my_project.py").write_text(PROJECT, encoding="utf-8")
    if net:
        Path("net.py").write_text(NET, encoding="utf-8")


def readme() -> dict[str, Any]:
    _project(net=False)
    torch.save(_my_net().state_dict(), "mynet.pt")
    return {
        "model": _my_net(),
        "example_input": torch.zeros(1, 3, 32, 32),
        "batches": _batches(),
        "build_model": _my_net,
    }


def index() -> dict[str, Any]:
    _project(net=True)
    return {}


def targets() -> dict[str, Any]:
    return {"model": _my_net(), "images": _batches()[0], "batches": _batches()}


def latency() -> dict[str, Any]:
    export_onnx(_my_net(), (torch.zeros(1, 3, 32, 32),), Path("original.onnx"))
    for name in ("compressed.onnx", "a.onnx", "b.onnx", "runs/mine/model.onnx"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(Path("original.onnx").read_bytes())
    bench = Path("adb-bench.sh")
    bench.write_text("#!/bin/sh\necho 12.3 ms\n", encoding="utf-8")
    bench.chmod(0o755)
    return {}


def raspberry_pi() -> dict[str, Any]:
    torchvision()  # timm imports it
    pytest.importorskip("timm")
    return {}


def search() -> dict[str, Any]:
    """The network of `make demo`, judged by something that takes no time."""
    names: dict[str, Any] = {"__name__": "digits"}
    exec((Path(__file__).parents[1] / "samples" / "digits.py").read_text(), names)  # noqa: S102
    torch.manual_seed(0)
    model = names["network"]().eval()

    def score(candidate: nn.Module) -> float:
        return float(sum(p.detach().abs().sqrt().sum() for p in candidate.parameters()))

    compressor.compress(
        model, names["example_input"](), budget="madds=40%", calibration=[torch.randn(8, 1, 8, 8)],
        out="runs/demo", score=score, refit=False,
    )  # fmt: skip
    return {}


FOLDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": readme,
    "docs/index.md": index,
    "docs/latency.md": latency,
    "docs/search.md": search,
    "docs/targets.md": targets,
    "docs/tutorial-raspberry-pi.md": raspberry_pi,
}


def prepare(page: str) -> dict[str, Any]:
    """Makes the files in the current folder, and gives the names of the Python session."""
    return FOLDERS[page]() if page in FOLDERS else {}
