from __future__ import annotations

import copy
import errno
import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.deploy.agreement import largest_difference
from compressor.deploy.export import ExportReport, export_base, export_onnx
from compressor.device.measure import Settings, create_session, run_session
from compressor.errors import CheckError, CompressorError, ExportError
from compressor.space import SearchSpace


class Mixed(nn.Module):
    """Two outputs in a dict, BatchNorm and dropout: training mode would show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)
        self.norm.running_mean.copy_(torch.randn(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.norm(self.conv(x)))
        return {"logits": self.head(self.drop(features).mean((2, 3))), "features": features}


class Counting(nn.Module):
    """Depends on how often it was called: no graph can say that."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(2, 2, 2).flatten(1))


class Several(nn.Module):
    """Numbers, indices into a table of seven rows, and an input without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor, index: Tensor, scale: Tensor) -> list[Tensor]:
        return [x * scale + self.table(index).sum(1), x.argmax(1)]


class Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-x.abs() - 1)


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.asarray(x.tolist()).sum())


@pytest.fixture(scope="module")
def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


@pytest.fixture(scope="module")
def example() -> tuple[Tensor]:
    return (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture(scope="module")
def exported(
    model: Mixed, example: tuple[Tensor], tmp_path_factory: pytest.TempPathFactory
) -> ExportReport:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    samples = [(torch.randn(5, 3, 8, 8),)]
    return export_onnx(model, example, path, metadata={"source": "test"}, samples=samples)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_gives_the_networks_outputs_at_any_batch_size(model, exported, batch):
    x = torch.randn(batch, 3, 8, 8)
    found = run_session(create_session(exported.path, Settings()), [x.numpy()])
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
    for a, b in zip(expected.values(), found, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-5)


def test_report_says_what_was_written_and_compared(exported):
    assert exported.bytes == exported.path.stat().st_size
    assert exported.batch_sizes == (1, 3, 5)
    assert exported.input_names == ("x",)
    assert exported.opset >= 18
    assert 0 <= exported.max_difference < 1e-5


def test_file_is_one_checked_model_with_metadata(exported):
    stored = onnx.load(exported.path)
    onnx.checker.check_model(stored)
    assert {p.key: p.value for p in stored.metadata_props}["source"] == "test"
    assert [p.name for p in exported.path.parent.iterdir()] == ["model.onnx"]


def test_file_says_nothing_about_the_machine(exported):
    data = exported.path.read_bytes()
    assert b"stack_trace" not in data
    assert str(Path(__file__).parent).encode() not in data


def test_model_is_not_touched(example, tmp_path):
    model = Mixed()
    model.conv.eval()
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    flags = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_onnx(model, example, tmp_path / "m.onnx", dynamic_batch=False)
    assert [m.training for m in model.modules()] == flags
    assert len(model.head._forward_hooks) == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.norm.num_batches_tracked == 0


def test_static_batch_takes_only_its_own(tmp_path):
    path = tmp_path / "m.onnx"
    samples = [(torch.randn(5, 4),)]
    report = export_onnx(
        FixedBatch(), (torch.randn(2, 4),), path, dynamic_batch=False, samples=samples
    )
    assert report.batch_sizes == (2,)
    assert create_session(path, Settings()).get_inputs()[0].shape == [2, 4]


def test_written_in_batch_size_is_an_error_that_names_the_way_out(tmp_path):
    with pytest.raises(CompressorError, match=r"--static-batch"):
        export_onnx(FixedBatch(), (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_traces_differently_leaves_no_file(tmp_path):
    model = Counting()
    with pytest.raises(CheckError, match=r"within 0\.001 .* differ by \d"):
        export_onnx(model, (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    assert model.calls == 0


def test_a_failed_export_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(CheckError, match="nan"):
        export_onnx(Undefined(), (torch.randn(2, 4),), path)
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_exporters_failure_is_one_of_ours_and_silent(tmp_path, capfd):
    with pytest.raises(ExportError, match="torch cannot export the network") as caught:
        export_onnx(Unexportable(), (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_missing_directory_is_an_error_of_ours(tmp_path, example, model):
    with pytest.raises(ExportError, match=r"gone.*No such file"):
        export_onnx(model, example, tmp_path / "gone" / "m.onnx")


def test_full_disk_is_an_error_of_ours_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExportError, match=r"m\.onnx: No space left"):
        export_onnx(nn.Linear(4, 2), (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_several_inputs_of_several_kinds(tmp_path):
    example = (torch.randn(2, 4), torch.tensor([[1, 6], [0, 2]]), torch.tensor(0.5))
    report = export_onnx(Several(), example, tmp_path / "m.onnx")
    assert report.input_names == ("x", "index", "scale")
    assert report.batch_sizes == (1, 3)


def test_comparison_tolerates_only_what_is_allowed(exported, example, model):
    session = create_session(exported.path, Settings())
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        other.head.bias += 0.01
    found = largest_difference(other, session, [example], math.inf)
    assert 1e-4 < found < 1
    with pytest.raises(CheckError, match="differ by"):
        largest_difference(other, session, [example], found / 2)


class Port:
    name = "x"


class FakeSession:
    """Gives the outputs it was made with."""

    def __init__(self, *outputs: list) -> None:
        self.outputs = [np.asarray(o, np.float32) for o in outputs]

    def get_inputs(self) -> list[Port]:
        return [Port()]

    def run(self, names: None, feed: dict) -> list[np.ndarray]:
        return self.outputs


@pytest.mark.parametrize(
    ("expected", "found", "share"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([1e-9, 2e-9], [1e-9, 1e-9], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([math.inf, 2.0], [math.inf, 1.0], 0.5),
    ],
)
def test_difference_is_a_share_of_the_largest_output(expected, found, share):
    x = torch.tensor(expected)
    measured = largest_difference(nn.Identity(), FakeSession(found), [(x,)], 1)
    assert measured == pytest.approx(share)


@pytest.mark.parametrize("found", [[[math.nan, 1]], [[math.inf, 1]], [[1]], [], [[1, 1], [1, 1]]])
def test_undefined_missing_and_surplus_outputs_disagree(found):
    with pytest.raises(CheckError):
        largest_difference(nn.Identity(), FakeSession(*found), [(torch.ones(2),)], 1)
    nan = torch.tensor([math.nan, 1.0])
    with pytest.raises(CheckError):
        largest_difference(nn.Identity(), FakeSession([math.nan, 1.0]), [(nan,)], 1)


def test_base_graph_computes_the_network(model, example):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = export_base(model, example)
    data = graph.slice(SearchSpace(()), ())
    expected = copy.deepcopy(model).eval()
    assert largest_difference(expected, create_session(data, Settings()), [example], 1e-5) < 1e-5


def test_attention_over_windows_exports(tmp_path: Path) -> None:
    """torch computes attention in five dimensions, its exporter knows four."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            q, k, v = self.qkv(x).reshape(n, 3, 4, 3, 2, 4).permute(3, 0, 4, 1, 2, 5).unbind(0)
            return functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    report = export_onnx(Windows(), (torch.randn(1, 12, 8),), tmp_path / "windows.onnx")
    assert report.max_difference < 1e-5


class Clipped(nn.Module):
    """Two layers that clip one tensor each by bounds of its own, as quantisation-aware ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.register_buffer("bounds", torch.tensor([-0.5, 0.5, -1.0, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        low, high, lower, higher = self.bounds
        return self.one(x.clamp(low, high)) + self.two(x.clamp(lower, higher))


def test_one_tensor_clipped_twice_exports(tmp_path: Path) -> None:
    """torch's optimiser names the bounds of both by that tensor, and loses those of one."""
    torch.manual_seed(0)
    network, example = Clipped().eval(), (3 * torch.randn(2, 4),)
    report = export_onnx(network, example, tmp_path / "model.onnx", samples=[example])
    assert report.max_difference < 1e-5


class All(nn.Module):
    """Reads as many inputs as come."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.one(inputs[0]) + self.two(inputs[1])


class AllOthers(All):
    """The first by a name of its own."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.one(x) + sum(self.two(other) for other in others)


@pytest.mark.parametrize(
    ("network", "sizes"), [(All, [4, 5]), (AllOthers, [4, 5]), (AllOthers, [4])]
)
def test_a_network_that_reads_as_many_inputs_as_come_exports(
    tmp_path: Path, network, sizes
) -> None:
    example = tuple(torch.randn(2, size) for size in sizes)
    report = export_onnx(network().eval(), example, tmp_path / "model.onnx")
    shapes = [given.shape for given in create_session(report.path, Settings()).get_inputs()]
    assert [shape[1] for shape in shapes] == sizes
    assert all(isinstance(shape[0], str) for shape in shapes)
