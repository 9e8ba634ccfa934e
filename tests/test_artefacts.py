"""A compressed network on disk comes back, and what does not fit is refused."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.generic import GenericAdapter
from compressor.deploy import artefacts
from compressor.errors import RunError
from compressor.network.structure import materialise
from compressor.network.verify import verify_space
from compressor.space import Architecture, SearchSpace
from tests import networks
from tests.test_counting import NETWORKS

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Tied(networks.Separable):
    """Two names for one tensor beside what can be cut."""

    def __init__(self) -> None:
        super().__init__(classes=48)
        self.out = nn.Linear(48, 48)
        self.out.weight = self.head.weight
        self.alias = self.body[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(super().forward(x))


def compressed(network: Any, seed: int = 0) -> tuple[nn.Module, SearchSpace, Architecture]:
    torch.manual_seed(seed)
    net = network().eval()
    space = verify_space(net, (IMAGE,), GenericAdapter().read(net, (IMAGE,)))
    draw = random.Random(seed)  # noqa: S311
    architecture = tuple(draw.randrange(size) for size in space.sizes)
    return materialise(net, space, architecture), space, architecture


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    artefacts.save(run, *compressed(networks.Separable))
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("network", [*NETWORKS, Tied])
def test_loading_gives_the_same_outputs(network: Any, tmp_path: Path) -> None:
    small, space, architecture = compressed(network)
    artefacts.save(tmp_path, small, space, architecture)
    torch.manual_seed(99)
    original = network().train()
    loaded = artefacts.load(tmp_path, original)
    assert not loaded.training
    assert original.training
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), small(IMAGE))
    assert artefacts.read_architecture(tmp_path) == (space, architecture)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["architecture.json", "model.safetensors"]


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    artefacts.save(tmp_path, *compressed(Tied))
    loaded = artefacts.load(tmp_path, Tied())
    assert loaded.out.weight is loaded.head.weight
    assert loaded.alias is loaded.body[0]


def test_memory_formats_and_other_types(tmp_path: Path) -> None:
    small, space, architecture = compressed(networks.Separable)
    small = small.to(memory_format=torch.channels_last).double()
    artefacts.save(tmp_path, small, space, architecture)
    loaded = artefacts.load(tmp_path, networks.Separable().double())
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGE.double()), small(IMAGE.double()))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (networks.Residual(), "which this model does not have"),
        (networks.Separable(classes=7), "'head.weight' is [10, "),
        (nn.Linear(2, 2), "this Linear"),
        (nn.Identity(), "this Identity"),
    ],
)
def test_another_model_is_refused(saved: Path, model: nn.Module, said: str) -> None:
    with pytest.raises(RunError, match="does not fit this") as error:
        artefacts.load(saved, model)
    assert said in str(error.value)
    assert "pass the model that was compressed" in str(error.value)


@pytest.mark.parametrize("change", ["bias", "extra", "missing"])
def test_a_model_that_differs_in_one_tensor_is_refused(saved: Path, change: str) -> None:
    model = networks.Separable()
    if change == "bias":
        model.body[2][0] = nn.Conv2d(16, 32, 1)
    elif change == "extra":
        model.extra = nn.Linear(2, 2)
    else:
        model.body[0][1] = nn.Identity()
    with pytest.raises(RunError, match="does not fit this Separable"):
        artefacts.load(saved, model)


def test_a_cut_bias_that_the_model_does_not_have(tmp_path: Path) -> None:
    artefacts.save(tmp_path, *compressed(networks.Residual))
    model = networks.Residual()
    model.a2.bias = None
    with pytest.raises(RunError, match=r"a2\.bias"):
        artefacts.load(tmp_path, model)


@pytest.mark.parametrize("name", ["model.safetensors", "architecture.json"])
@pytest.mark.parametrize("left", [0, 7, 0.5, 0.99])
def test_truncated_files_are_refused(run: Path, name: str, left: float) -> None:
    whole = (run / name).read_bytes()
    size = int(left if isinstance(left, int) else left * len(whole))
    (run / name).write_bytes(whole[:size])
    with pytest.raises(RunError):
        artefacts.load(run, networks.Separable())


@pytest.mark.parametrize("name", ["model.safetensors", "architecture.json"])
def test_missing_files_are_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunError, match=name):
        artefacts.load(run, networks.Separable())


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="give the --out directory of a finished"):
        artefacts.load(tmp_path / "nowhere", networks.Separable())
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError):
        artefacts.load(tmp_path / "file", networks.Separable())


def test_pickle_is_not_read(run: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.write_text, (run / "trapped", "x"))

    for name in ("model.safetensors", "architecture.json"):
        keep = (run / name).read_bytes()
        (run / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(RunError):
            artefacts.load(run, networks.Separable())
        (run / name).write_bytes(keep)
    torch.save({"w": Trap()}, run / "model.safetensors")
    with pytest.raises(RunError):
        artefacts.load(run, networks.Separable())
    assert not (run / "trapped").exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_description_is_refused_or_harmless(
    run: Path, at: int, bit: int
) -> None:
    path = run / "architecture.json"
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[at % len(whole)] ^= 1 << bit
    path.write_bytes(bytes(broken))
    try:
        loaded = artefacts.load(run, networks.Separable())
    except RunError:
        return
    finally:
        path.write_bytes(whole)
    with torch.no_grad():
        got, want = loaded(IMAGE), artefacts.load(run, networks.Separable())(IMAGE)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"architecture": [0]}, {"architecture": [99] * 4}, {"architecture": None},
        {"architecture": [float("inf")] * 4}, {"space": {}}, {"space": {"layers": 3}},
        {"schema": None},
    ],
)  # fmt: skip
def test_descriptions_of_another_form(run: Path, change: dict[str, Any]) -> None:
    path = run / "architecture.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=r"architecture\.json"):
        artefacts.load(run, networks.Separable())


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "[" * 100_000, "\x00", "é"])
def test_files_of_another_program(run: Path, text: str) -> None:
    (run / "architecture.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError):
        artefacts.load(run, networks.Separable())


def test_a_disk_without_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError  # noqa: PLC0415

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    parts = compressed(networks.Separable)
    monkeypatch.setattr(artefacts, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        artefacts.save(tmp_path, *parts)
    assert list(tmp_path.iterdir()) == []
