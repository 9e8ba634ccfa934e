"""`FILE.pt2`: the network of an exported program is the network that was exported."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

import compressor
from cli.file_target import file_target
from cli.resolve import resolve_target
from compressor.errors import DataError, TargetError
from compressor.foreign.reading import FileNetwork, read_file
from compressor.foreign.steps import StepNetwork
from compressor.network.structure import materialise
from compressor.run.reading import describe, read_network
from tests.vision import torchvision

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


class Attention(nn.Module):
    """Attention as most people write it, with sizes in the code and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.places = nn.Parameter(torch.randn(1, 17, 32))
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.places
        q, k, v = self.qkv(self.norm(x)).reshape(n, 17, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(
            nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 17, 32)
        )
        return x + self.mlp(x)


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, a GroupNorm, a transposed one, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.Hardswish()
        )
        self.grouped = nn.Conv2d(32, 64, 3, padding="same", groups=4)
        self.norm = nn.GroupNorm(8, 64)
        self.slope = nn.PReLU(64)
        self.up = nn.ConvTranspose2d(64, 16, 2, 2)
        self.same = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = self.up(self.slope(self.norm(self.grouped(x))))
        x = self.same(torch.relu(self.same(x)))
        return self.head(x.mean((2, 3)))


def small_resnet() -> nn.Module:
    models = torchvision().models
    kind = models.resnet
    return kind.ResNet(kind.BasicBlock, [1, 1, 1, 1], num_classes=5)  # type: ignore[no-any-return]


def mobilenet() -> nn.Module:
    return torchvision().models.mobilenet_v2(width_mult=0.25, num_classes=5)  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mixed": (Mixed, (3, 16, 16)),
    "attention": (Attention, (16, 32)),
    "resnet": (small_resnet, (3, 32, 32)),
    "mobilenet": (mobilenet, (3, 32, 32)),
}


def saved(
    model: nn.Module, example: tuple[Tensor, ...], path: Path, *, dynamic: bool, plain: bool = False
) -> Path:
    shapes = tuple({0: Dim("n")} for _ in example) if dynamic else None
    program = torch.export.export(model.eval(), example, dynamic_shapes=shapes)
    if plain:
        program = program.run_decompositions()
    torch.export.save(program, path)
    return path


def trained(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Weights and statistics that tell channels apart."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.dim() < 2 else tensor)
    return model.eval(), shape


@pytest.mark.parametrize(
    ("name", "dynamic", "plain"),
    [
        *product(("mixed", "attention"), (True, False), (True, False)),
        ("resnet", True, False), ("resnet", False, True), ("mobilenet", False, False),
    ],
)  # fmt: skip
def test_it_is_the_network_that_was_exported(
    tmp_path: Path, name: str, dynamic: bool, plain: bool
) -> None:
    model, shape = trained(name)
    example = torch.randn(2 if dynamic else 1, *shape)
    found = read_file(saved(model, (example,), tmp_path / "net.pt2", dynamic=dynamic, plain=plain))
    assert found.batch is None
    three = torch.randn(3, *shape)
    with torch.no_grad():
        assert torch.allclose(found.model(three), model(three), atol=1e-5)
    assert [n for n, _ in found.model.named_parameters()]
    assert dict(found.model.named_parameters()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [("mixed", True), ("mixed", False), ("attention", True), ("attention", False),
     ("resnet", False), ("mobilenet", True)],
)  # fmt: skip
def test_it_is_read_and_cut_like_the_original(tmp_path: Path, name: str, dynamic: bool) -> None:
    model, shape = trained(name)
    example = torch.randn(2 if dynamic else 1, *shape)
    found = read_file(saved(model, (example,), tmp_path / "net.pt2", dynamic=dynamic))
    one = (example[:1],)
    readings = [read_network(m, one) for m in (model, found.model)]
    a, b = (describe(r, (None, "")) for r in readings)
    assert (a.madds, a.params, a.share, a.least_madds) == (
        b.madds,
        b.params,
        b.share,
        b.least_madds,
    )
    assert a.share > 0.5
    assert [x.choices for x in a.layers] == [x.choices for x in b.layers]
    assert [x.name for x in b.sliced] == [x.name for x in a.sliced]
    small = [
        materialise(m, r.space, r.space.smallest)
        for m, r in zip((model, found.model), readings, strict=True)
    ]
    with torch.no_grad():
        assert torch.allclose(small[0](*one), small[1](*one), atol=1e-5)


def test_inputs_and_outputs_of_several_tensors_are_flat(tmp_path: Path) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 8)

        def forward(self, x: Tensor, more: dict[str, Tensor], *, scale: float = 2.0) -> Any:
            return {"sum": self.one(x) + more["b"], "parts": (x * scale, more["a"])}

    given = (torch.randn(1, 4), {"a": torch.randn(1, 3), "b": torch.randn(1, 8)})
    model = Several().eval()
    torch.export.save(torch.export.export(model, given), tmp_path / "net.pt2")
    found = read_file(tmp_path / "net.pt2")
    assert len(found.example) == len(found.input_names) == 3
    flat = found.model(*found.example)
    want = model(found.example[0], {"a": found.example[1], "b": found.example[2]})
    assert [torch.equal(a, b) for a, b in zip(flat, [want["sum"], *want["parts"]], strict=True)]


def test_a_part_without_gradients_is_read_as_any_other(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = torch.relu(self.a(x))
            return self.b(x)

    model = Frozen().eval()
    path = saved(model, (torch.randn(2, 4),), tmp_path / "net.pt2", dynamic=True)
    x = torch.randn(5, 4)
    assert torch.equal(read_file(path).model(x), model(x))


def test_a_batch_size_that_the_network_depends_on_stays_and_is_told(tmp_path: Path) -> None:
    class OverTheBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) - self.one(x).mean(0)

    example = torch.randn(4, 8)
    path = saved(OverTheBatch(), (example,), tmp_path / "net.pt2", dynamic=False)
    found = read_file(path)
    assert found.batch == 4
    assert found.example[0].shape == (4, 8)
    assert "batch size 4" in resolve_target(str(path), needs_data=False).note
    save_file({"x": torch.randn(16, 8)}, tmp_path / "x.safetensors")
    with pytest.raises(TargetError, match="batches of any size"):
        resolve_target(str(path), f"tensors:{tmp_path / 'x.safetensors'}")


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Mixed().train(), (torch.randn(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(TargetError, match=r"training mode, export model.eval\(\): batch_norm"):
        read_file(tmp_path / "net.pt2")


def test_it_can_be_read_from_python(good: Path) -> None:
    found = compressor.read_file(str(good))
    assert isinstance(found, compressor.FileNetwork)
    assert found.model(*found.example).shape == (1, 2)


def test_constant_example_inputs_become_noise(tmp_path: Path) -> None:
    path = saved(nn.Linear(4, 2), (torch.zeros(1, 4),), tmp_path / "net.pt2", dynamic=False)
    assert read_file(path).example[0].std() > 0


# what others may have written


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "net.pt2"
    return saved(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), (torch.randn(1, 4),),
                 path, dynamic=False)  # fmt: skip


def rewritten(good: Path, path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info.filename)))
    return path


def of_program(change: Callable[[dict[str, Any]], object]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return changed


def nodes(program: dict[str, Any]) -> list[dict[str, Any]]:
    return program["graph_module"]["graph"]["nodes"]  # type: ignore[no-any-return]


class Bomb:
    """Would write a file if it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_copy_with_nothing_changed_is_read(good: Path, tmp_path: Path) -> None:
    assert isinstance(read_file(rewritten(good, tmp_path / "a.pt2", lambda _, d: d)), FileNetwork)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.load", "os.system", "builtins.eval", "_operator.attrgetter",
        "math.__loader__.load_module", "torch.ops.aten.from_file.default", "torch.ops.aten.gelu",
        "torch.ops.aten.save.default", "torch.ops.aten.__class__.default",
        "torch.ops.mine.op.default",
    ],
)  # fmt: skip
def test_other_functions_than_operators_of_networks_are_refused(
    good: Path, tmp_path: Path, target: str
) -> None:
    change = of_program(lambda p: nodes(p)[1].update(target=target))
    path = rewritten(good, tmp_path / "bad.pt2", change)
    with pytest.raises(TargetError):
        read_file(path)


def test_all_operators_that_are_not_known_are_named(good: Path, tmp_path: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        nodes(program)[0]["target"] = nodes(program)[2]["target"] = "torch.ops.mine.matrix.default"
        nodes(program)[1]["target"] = "torch.ops.mine.bend.default"

    path = rewritten(good, tmp_path / "bad.pt2", of_program(change))
    said = "operator torch.ops.mine.matrix.default is not known: linear, linear_1; .*mine.bend"
    with pytest.raises(TargetError, match=said):
        read_file(path)


def test_texts_are_not_passed_on(good: Path, tmp_path: Path) -> None:
    argument = {"name": "approximate", "arg": {"as_string": "/etc/passwd"}, "kind": 2}
    change = of_program(lambda p: nodes(p)[1]["inputs"].append(argument))
    with pytest.raises(TargetError, match="no such text: '/etc/passwd'"):
        read_file(rewritten(good, tmp_path / "bad.pt2", change))


def test_nothing_is_unpickled(good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def inputs(name: str, data: bytes) -> bytes:
        if not name.endswith("sample_inputs/model.pt"):
            return data
        buffer = io.BytesIO()
        torch.save(((torch.randn(1, 4), Bomb(mark)), {}), buffer)
        return buffer.getvalue()

    def weights(name: str, data: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return pickle.dumps(Bomb(mark)) if "weight_" in name else data

    def objects(name: str, data: bytes) -> bytes:
        if name.endswith("model_constants_config.json"):
            entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
            return json.dumps({"config": {"x": entry}}).encode()
        return data

    for change in (inputs, weights, objects):
        with pytest.raises(TargetError):
            read_file(rewritten(good, tmp_path / "bad.pt2", change))
    assert not mark.exists()


def test_expressions_are_not_evaluated(good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bad = {"as_expr": {"expr_str": f"open({str(mark)!r}, 'w')", "hint": None}}

    def change(program: dict[str, Any]) -> None:
        for meta in program["graph_module"]["graph"]["tensor_values"].values():
            meta["sizes"][0] = bad

    read_file(rewritten(good, tmp_path / "odd.pt2", of_program(change)))
    assert not mark.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda n, d: d[: len(d) // 2] if n.endswith("model.json") else d,
        lambda n, d: d[: len(d) // 2] if "weight_" in n else d,
        lambda n, d: b"[]" if n.endswith(".json") else d,
        lambda n, d: d.replace(b'"dtype": 7', b'"dtype": 99'),
        lambda n, d: d.replace(b'"as_int": 8', b'"as_int": 80000000'),
        lambda n, d: d.replace(b'"as_int": 8', b'"as_int": -8'),
        lambda n, d: d.replace(b'"as_int": 8', b'"as_int": "8"'),
        lambda n, d: d.replace(b"weight_0", b"../../../etc/passwd"),
        lambda n, d: d.replace(b'"0.weight"', b'"2.weight"'),
        lambda n, d: d.replace(b'"0.weight"', b'"..forward"'),
        lambda n, d: d.replace(b'"major": 8', b'"major": 9'),
        lambda n, d: b"big" if n.endswith("byteorder") else d,
        of_program(lambda p: p.pop("graph_module")),
        of_program(lambda p: nodes(p).clear()),
        of_program(lambda p: nodes(p)[0].update(inputs=[])),
        of_program(lambda p: nodes(p)[0].update(outputs=[{"as_custom_obj": {}}])),
        of_program(lambda p: p["graph_module"]["signature"].update(output_specs=[])),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_an_error(
    good: Path, tmp_path: Path, change: Callable[[str, bytes], bytes]
) -> None:
    path = rewritten(good, tmp_path / "bad.pt2", change)
    with pytest.raises(TargetError, match=r"bad\.pt2|names in the file|its own example"):
        read_file(path)


def test_a_tensor_that_repeats_its_numbers_for_ever_is_refused(good: Path, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return data
        config = json.loads(data)
        meta = next(iter(config["config"].values()))["tensor_meta"]
        meta["sizes"] = [{"as_int": 1 << 20} for _ in meta["sizes"]]
        meta["strides"] = [{"as_int": 0} for _ in meta["sizes"]]
        return json.dumps(config).encode()

    with pytest.raises(TargetError, match="numbers are said to be"):
        read_file(rewritten(good, tmp_path / "bad.pt2", change))


def test_files_that_are_none(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    for name, held in {
        "half.pt2": data[: len(data) // 2],
        "no.pt2": b"hello",
        "none.pt2": b"",
    }.items():
        (tmp_path / name).write_bytes(held)
        with pytest.raises(TargetError, match=r"must be a whole \.pt2 archive"):
            read_file(tmp_path / name)
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt2")
    with pytest.raises(TargetError, match=r"holds no models/model\.json"):
        read_file(tmp_path / "weights.pt2")
    with pytest.raises(TargetError, match="does not exist"):
        read_file(tmp_path / "gone.pt2")
    with pytest.raises(TargetError, match="is a directory"):
        read_file(tmp_path)
    with pytest.raises(TargetError, match=r"must end in \.pt2"):
        read_file(__file__)


# data for a file


def test_tensors_calibrate_and_validate(good: Path, tmp_path: Path) -> None:
    inputs, targets = torch.randn(10, 4), torch.arange(10) % 2
    save_file({"inputs": inputs, "targets": targets}, tmp_path / "x.safetensors")
    target = resolve_target(str(good), f"tensors:{tmp_path / 'x.safetensors'}")
    ((first, labels),) = target.calibration
    assert torch.equal(first, inputs[::2])
    assert torch.equal(labels, targets[::2])
    assert target.validation is not None
    ((second, labels),) = target.validation
    assert torch.equal(second, inputs[1::2])
    assert torch.equal(labels, targets[1::2])
    assert isinstance(target.build_model(), StepNetwork)
    assert target.build_model() is not target.build_model()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"other": torch.ones(4, 4)}, "has no 'input'; it holds other"),
        ({"inputs": torch.ones(4, 5)}, r"takes 'input' as torch.float32 \['N', 4\]"),
        ({"inputs": torch.ones(4, 4).double()}, "torch.float64"),
        ({"inputs": torch.ones(4, 4), "targets": torch.ones(3)}, "all of the same length"),
        ({"inputs": torch.ones(1, 4)}, "two or more"),
    ],
)
def test_tensors_that_do_not_fit(
    good: Path, tmp_path: Path, held: dict[str, Tensor], said: str
) -> None:
    save_file(held, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=said):
        resolve_target(str(good), f"tensors:{tmp_path / 'x.safetensors'}")


def test_tensors_that_do_not_fit_into_memory(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(_: Path) -> dict[str, Tensor]:
        raise MemoryError("Cannot allocate memory")

    save_file({"inputs": torch.ones(2, 4)}, tmp_path / "x.safetensors")
    monkeypatch.setattr("cli.tensor_data.load_file", too_large)
    with pytest.raises(DataError, match="cannot be read: Cannot allocate memory"):
        resolve_target(str(good), f"tensors:{tmp_path / 'x.safetensors'}")


def test_data_that_is_not_there(good: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for data, said in {
        None: "has no data of its own",
        f"tensors:{tmp_path / 'y.safetensors'}": "there is no file",
        f"tensors:{tmp_path / 'x.safetensors'}": "cannot be read",
        f"imagefolder:{tmp_path}": r"takes images \[N, 3, H, W\]",
    }.items():
        with pytest.raises(DataError, match=said):
            file_target(str(good), data, needs_data=True)
