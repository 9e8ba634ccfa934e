"""Code that writes sizes out: followed in torch, in exported graphs, and when it is cut again."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import compressor
from adapters.generic import GenericAdapter
from compressor.deploy.agreement import largest_difference
from compressor.deploy.export import export_base, export_onnx
from compressor.device.measure import Settings, create_session
from compressor.errors import ArchitectureError, ExportError
from compressor.network.sized import watching
from compressor.network.sized_calls import read_call
from compressor.network.structure import masked, materialise
from compressor.network.verify import verify_space
from compressor.refit.assembly import Assembler
from compressor.space import SearchSpace
from tests.test_identities import TOKENS, Attention, Grouped


def encoder(batch_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=batch_first)
    return nn.Sequential(nn.Linear(8, 24), layer, nn.Linear(24, 3))


NETWORKS = [Attention, lambda: Attention(free_width=False), Grouped, encoder]


def read(make) -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    net = make().eval()
    return net, verify_space(net, TOKENS, GenericAdapter().read(net, TOKENS))


@pytest.mark.parametrize("make", NETWORKS)
def test_a_slice_of_the_graph_computes_the_materialised_network(make):
    net, space = read(make)
    graph = export_base(net, TOKENS)
    halves = tuple(size // 2 for size in space.sizes)
    for architecture in {space.smallest, halves, space.original}:
        session = create_session(graph.slice(space, architecture), Settings())
        small = materialise(net, space, architecture)
        inputs = [(torch.randn(n, 6, 8),) for n in (1, 3)]
        assert largest_difference(small, session, inputs, 1e-4) <= 1e-4


@pytest.mark.parametrize("make", NETWORKS)
def test_the_smaller_network_exports_for_any_batch(make, tmp_path):
    net, space = read(make)
    small = materialise(net, space, space.smallest)
    report = export_onnx(small, TOKENS, tmp_path / "small.onnx")
    assert len(report.batch_sizes) > 1
    assert report.input_names == export_onnx(net, TOKENS, tmp_path / "whole.onnx").input_names


@pytest.mark.parametrize("make", [lambda: Attention(free_width=False), encoder])
def test_heads_are_compressed_to_a_budget_and_loaded_again(make, tmp_path):
    torch.manual_seed(0)
    net = make().eval()
    images = [torch.randn(8, 6, 8) for _ in range(4)]
    result = compressor.compress(
        net, TOKENS, budget="madds=60%", calibration=images, out=tmp_path / "run", evaluations=6
    )
    assert result.summary.best.madds <= 0.6 * result.summary.base.madds
    loaded = compressor.load(tmp_path / "run", net)
    batch = torch.randn(5, 6, 8)
    torch.testing.assert_close(loaded(batch), result.model(batch))
    assert np.isfinite(result.summary.best.score)


def test_candidates_follow_when_one_network_is_cut_again_and_again():
    net, space = read(lambda: Attention(free_width=False))
    assembler = Assembler(net, space, {})
    batch = torch.randn(3, 6, 8)
    mixed = [tuple((i + k) % n for i, n in enumerate(space.sizes)) for k in (1, 2)]
    for architecture in (space.smallest, space.original, *mixed, space.smallest):
        with torch.no_grad():
            got = assembler.assemble(architecture)(batch)
            want = materialise(net, space, architecture)(batch)
        torch.testing.assert_close(got, want)


def test_a_space_keeps_its_sizes_when_it_is_stored():
    _, space = read(lambda: Attention(free_width=False))
    assert any(layer.group and layer.group.extents for layer in space.layers)
    assert SearchSpace.from_json(space.to_json()) == space
    data = space.to_json()
    data["layers"][0]["group"]["extents"][0][1] = 9
    with pytest.raises(ArchitectureError, match="cannot be read"):
        SearchSpace.from_json(data)


@pytest.mark.parametrize("make", NETWORKS)
def test_a_network_can_be_cut_copied_and_cut_again(make):
    net, space = read(make)
    small = materialise(net, space, tuple(size // 2 for size in space.sizes))
    again = verify_space(small, TOKENS, GenericAdapter().read(small, TOKENS))
    for network in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):  # noqa: S301
        torch.testing.assert_close(network(*TOKENS), small(*TOKENS))
    if again.layers:
        materialise(small, again, again.smallest)(*TOKENS)


def test_a_forward_pass_that_fails_leaves_the_code_as_it_was():
    net, space = read(lambda: Attention(free_width=False))
    small = materialise(net, space, space.smallest)
    want = small(*TOKENS)
    with pytest.raises(RuntimeError):
        small(torch.randn(1, 6, 9))
    torch.testing.assert_close(small(*TOKENS), want)
    assert torch.zeros(2, 4).view(4, 2).shape == (4, 2)  # nothing watches any more


def test_a_size_that_is_no_longer_what_it_was_is_an_error():
    net, space = read(lambda: Attention(free_width=False))
    small = materialise(net, space, space.smallest)
    small.heads = 5
    with pytest.raises(ArchitectureError, match="writes out must be 4 or a multiple"):
        small(*TOKENS)


def test_calls_are_counted_by_the_module_whose_code_makes_them():
    class Inner(nn.Module):
        def forward(self, x):
            return x.view(2, 3).reshape(6)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x.view(6)).unflatten(0, (3, 2)) + self.inner(x).view((3, 2))

    seen = []
    with watching(net := Outer(), lambda name, call, _: seen.append((name, call.sizes))):
        net(torch.zeros(6))
    assert seen == [
        ("@1", (6,)), ("inner@1", (2, 3)), ("inner@2", (6,)), ("@2", (3, 2)),
        ("inner@1", (2, 3)), ("inner@2", (6,)), ("@3", (3, 2)),
    ]  # fmt: skip
    net(torch.zeros(6))
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("func", "args", "sizes", "other", "shapes"),
    [
        (torch.Tensor.view, (3, 4), (3, 4), (2, 6), [(2, 6)]),
        (torch.Tensor.reshape, ((3, -1),), (3, -1), (4, -1), [(4, 3)]),
        (torch.reshape, ((12,),), (12,), (12,), [(12,)]),
        (torch.Tensor.unflatten, (1, (2, 3)), (2, 3), (3, 2), [(2, 3, 2)]),
        (torch.Tensor.expand, (5, 2, 6), (5, 2, 6), (4, 2, 6), [(4, 2, 6)]),
        (torch.split, (3, 1), (3,), (2,), [(2, 2), (2, 2), (2, 2)]),
        (torch.split, ([2, 4], 1), (2, 4), (1, 5), [(2, 1), (2, 5)]),
    ],
)
def test_sizes_that_operators_are_told(func, args, sizes, other, shapes):
    call = read_call(func, (torch.zeros(2, 6), *args), {})
    assert call is not None
    assert call.sizes == sizes
    out = call.run(other)
    outs = [out] if isinstance(out, torch.Tensor) else list(out)
    assert [tuple(o.shape) for o in outs] == shapes
    assert [t.shape[d] for t, d, _ in call.parts(out)][: len(other)] == [
        o if o != -1 else 3 for o in other
    ]


def test_what_is_told_no_sizes_is_left_alone():
    x = torch.zeros(2, 6)
    assert read_call(torch.Tensor.view, (x, torch.int32), {}) is None
    assert read_call(torch.relu, (x,), {}) is None
    assert read_call(torch.flatten, (x,), {}) is None


def test_groups_cannot_be_followed_in_a_graph():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x):
            return self.two(F.group_norm(self.one(x), 4).relu()).mean((2, 3))

    torch.manual_seed(0)
    net, image = Normed().eval(), (torch.randn(1, 3, 8, 8),)
    space = verify_space(net, image, GenericAdapter().read(net, image))
    with pytest.raises(ExportError, match="export the materialised network"):
        export_base(net, image).slice(space, space.smallest)


class Interrupted(nn.Module):
    """Raises what no `except Exception` catches, when asked to."""

    def __init__(self):
        super().__init__()
        self.now = False

    def forward(self, x):
        if self.now:
            raise KeyboardInterrupt
        return x


def test_an_interrupt_leaves_the_network_as_it_was():
    net = Attention(free_width=False).eval()
    net.qkv = nn.Sequential(net.qkv, Interrupted())
    space = verify_space(net, TOKENS, GenericAdapter().read(net, TOKENS))
    small = materialise(net, space, space.smallest)
    want = small(*TOKENS)
    small.qkv[1].now = True
    with pytest.raises(KeyboardInterrupt):
        small(*TOKENS)
    small.qkv[1].now = False
    torch.testing.assert_close(small(*TOKENS), want)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_several_threads_run_one_network():
    net, space = read(lambda: Attention(free_width=False))
    small = materialise(net, space, space.smallest).requires_grad_(False)
    batches = [torch.randn(2, 6, 8) for _ in range(40)]
    want = [small(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(small, batches), want, strict=True):
            torch.testing.assert_close(got, expected)


def test_code_that_goes_another_way_when_it_trains_is_an_error_not_another_network():
    class Fickle(Attention):
        def forward(self, x):
            if not self.training:
                x = x.reshape(x.shape[0], 6, 8)
            return super().forward(x)

    net, space = read(Fickle)
    small = materialise(net, space, space.smallest)
    small(*TOKENS)
    with pytest.raises(ArchitectureError, match="in the same mode"):
        small.train()(*TOKENS)


def test_sizes_after_a_list_of_modules_are_the_modules_own():
    class Listed(Attention):
        def __init__(self):
            super().__init__(free_width=False)
            self.first = nn.ModuleList([Grouped()])

        def forward(self, x):
            return super().forward(x) + self.first[0](x)[:, :3]

    _, space = read(Listed)
    assert {"qkv", "first.0.q"} <= {layer.name for layer in space.layers}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_network_keeps_its_sizes():
    net, space = read(lambda: Attention(free_width=False))
    small = materialise(net, space, space.smallest).requires_grad_(False)
    traced = torch.jit.trace(small, TOKENS, check_trace=False)
    torch.testing.assert_close(traced(*TOKENS), small(*TOKENS))


def test_sizes_that_hold_for_one_input_only_are_frozen():
    class Folded(nn.Module):
        """Channels become a part of the batch, and come back."""

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3)
            self.tokens = Attention(free_width=False)

        def forward(self, x):
            n = x.shape[0]
            y = self.one(x)
            y = y.reshape(n * y.shape[1], 1, 8, 8).relu().reshape(n, -1, 8, 8)
            return self.two(y).mean((2, 3))

    torch.manual_seed(0)
    net, image = Folded().eval(), (torch.randn(1, 3, 8, 8),)
    space = verify_space(net, image, GenericAdapter().read(net, image))
    batch = torch.randn(3, 3, 8, 8)
    with masked(net, space, space.smallest):
        want = net(batch)
    got = materialise(net, space, space.smallest)(batch)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_attention_that_is_called_by_name_exports(tmp_path):
    class Named(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(query=x, key=x, value=x)

    export_onnx(Named(), (torch.randn(1, 2, 6, 8),), tmp_path / "named.onnx")


@pytest.mark.parametrize("mask", [None, (2, 6, 6), (6, 6)])
def test_attention_without_a_dimension_of_heads_exports(mask, tmp_path):
    class Plain(nn.Module):
        def forward(self, x):
            x = x.reshape(-1, 6, 8)  # heads are a part of the batch
            bias = None if mask is None else torch.ones(mask).tril() * x.mean()
            y = F.scaled_dot_product_attention(x, x, x, attn_mask=bias)
            return y.reshape(-1, 2, 6, 8)

    report = export_onnx(
        Plain(), (torch.randn(1, 2, 6, 8),), tmp_path / "plain.onnx", dynamic_batch=False
    )
    assert report.max_difference < 1e-5
