"""What TARGET may be, and that every mistake in one is named, with the line and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from cli import zoo
from cli.imagefolder import ImageBatches, class_labels, default_transform, image_folder
from cli.resolve import resolve_target
from cli.target import Target
from compressor.errors import DataError, TargetError
from tests.vision import torchvision

GOOD = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def example_input():
    return torch.zeros(1, 3, 2, 2)

def calibration_data():
    for seed in range(2):
        yield torch.full((4, 3, 2, 2), float(seed))

def validation_data():
    yield torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.long)
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("_compressor_target_", "mine")):
            del sys.modules[name]


def resolve(tmp_path: Path, source: str, **options: bool) -> Target:
    path = tmp_path / "net.py"
    path.write_text(source)
    return resolve_target(str(path), **options)


def test_a_file_with_generators(tmp_path: Path) -> None:
    target = resolve(tmp_path, GOOD)
    assert isinstance(target.build_model(), nn.Sequential)
    assert target.build_model() is not target.build_model()
    assert isinstance(target.calibration, list)
    assert [float(b.mean()) for b in target.calibration] == [0, 1]
    assert target.validation is not None
    assert [len(list(target.validation)) for _ in range(3)] == [1, 1, 1]
    assert target.training is None
    assert target.score is None


def test_optional_functions(tmp_path: Path) -> None:
    more = "\ndef training_data():\n    return [1]\ndef score(model):\n    return 0.5\n"
    target = resolve(tmp_path, GOOD + more)
    assert target.training == [1]
    assert target.score is not None
    assert target.score(nn.Identity()) == 0.5


def test_without_data_only_the_model_is_needed(tmp_path: Path) -> None:
    source = GOOD.partition("def calibration_data")[0]
    assert resolve(tmp_path, source, needs_data=False).calibration == ()
    with pytest.raises(TargetError, match="calibration_data"):
        resolve(tmp_path, source)


def test_a_module_beside_its_own_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "net.py").write_text("from mine_parts import WIDTH\n" + GOOD)
    (tmp_path / "mine_parts.py").write_text("WIDTH = 3\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_target("mine.net").name == "mine.net"


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine_beside.py").write_text("X = 1\n")
    resolve(tmp_path, "import mine_beside\n" + GOOD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere.py", "the file 'nowhere.py' does not exist"),
        ("no/such/net.py", "does not exist"),
        (".", "is a directory"),
        ("no_such_module", "no module 'no_such_module'"),
        ("no_such.module", "no module 'no_such.module'"),
        ("not a module", "no module"),
        (".relative", "no module"),
        ("keras:resnet18", "torchvision:NAME, timm:NAME"),
        ("", "is a directory"),
    ],
)
def test_a_target_that_is_not_there(text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        resolve_target(text)
    assert "path/to/file.py, package.module" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\nx.y\n", r"raised AttributeError: .* \(net\.py, line 2\)"),
        ("def f(:\n", r"raised SyntaxError: .* \(net\.py, line 1\)"),
        ("import no_such_thing\n", r"ModuleNotFoundError: .*no_such_thing.*line 1"),
        ("import sys\nsys.exit('bye')\n", r"SystemExit: bye \(net\.py, line 2\)"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .* \(net\.py, line 2\)"),
    ],
)
def test_a_file_that_does_not_import(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        resolve(tmp_path, source)
    assert "_compressor_target_net" not in sys.modules


def test_a_module_whose_package_does_not_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_broken").mkdir()
    (tmp_path / "mine_broken" / "__init__.py").write_text("import no_such_thing\n")
    (tmp_path / "mine_broken" / "net.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match=r"ModuleNotFoundError.*no_such_thing.*__init__\.py"):
        resolve_target("mine_broken.net")


def test_validation_data_is_optional_and_may_hold_inputs_alone(tmp_path: Path) -> None:
    without = GOOD.partition("def validation_data")[0]
    assert resolve(tmp_path, without).validation is None
    alone = without + "def validation_data():\n    yield torch.zeros(4, 3, 2, 2)\n"
    validation = resolve(tmp_path, alone).validation
    assert validation is not None
    assert [len(list(validation)) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("name", ["build_model", "example_input", "calibration_data"])
def test_a_missing_function_is_shown_with_its_signature(tmp_path: Path, name: str) -> None:
    with pytest.raises(TargetError, match=rf"must define {name}\(\)") as caught:
        resolve(tmp_path, GOOD.replace(f"def {name}(", "def other("))
    assert f"def {name}(" in str(caught.value)
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        (
            "example_input",
            "return [1, 2]",
            r"a tensor or a tuple of tensors, but returned list of int",
        ),
        ("example_input", "return ()", "but returned tuple"),
        ("example_input", "return (torch.zeros(1), 3)", "tuple of Tensor, int"),
        ("calibration_data", "return None", "an iterable of batches, but returned None"),
        ("calibration_data", "return torch.zeros(4, 3)", "but returned Tensor"),
        ("calibration_data", "return []", "at least one batch, but is empty"),
        ("validation_data", "return 5", "but returned int"),
        ("training_data", "return None", "but returned None"),
        ("training_data", "raise OSError('gone')", r"training_data\(\) of .* raised OSError: gone"),
        ("build_model", "raise ValueError()", r"raised ValueError:  \(net\.py"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, name: str, body: str, said: str) -> None:
    source = GOOD + f"\ndef {name}():\n    {body}\n"
    with pytest.raises((TargetError, DataError), match=said) as caught:
        resolve(tmp_path, source).build_model()
    assert name in str(caught.value)


def test_build_model_must_return_a_module(tmp_path: Path) -> None:
    target = resolve(tmp_path, GOOD + "\ndef build_model():\n    return {'state': 1}\n")
    with pytest.raises(
        TargetError, match=r"torch.nn.Module, but returned dict[^.]*\n.*def build_model"
    ):
        target.build_model()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("build_model = build_model()", "must be a function, but is Sequential"),
        ("example_input = 5", "must be a function, but is int"),
        ("def example_input(size):\n    return 1", r"called with no arguments, but: .*'size'"),
        ("def score():\n    return 1", r"called with 1 argument, but: "),
    ],
)
def test_a_wrong_function_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        resolve(tmp_path, f"{GOOD}\n{line}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_model_on_cuda_where_there_is_none(tmp_path: Path) -> None:
    source = GOOD.replace("nn.Linear(12, 3))", "nn.Linear(12, 3)).to('cuda')")
    with pytest.raises(TargetError, match=r"no CUDA device here.*map_location='cpu'"):
        resolve(tmp_path, source).build_model()


def test_data_that_fails_in_the_middle_is_named(tmp_path: Path) -> None:
    source = GOOD.replace("    yield torch.zeros", "    yield 1\n    1 / 0\n    yield torch.zeros")
    validation = resolve(tmp_path, source).validation
    with pytest.raises(TargetError, match=r"validation_data\(\) of .*ZeroDivisionError.*line 17"):
        list(validation)


def test_data_belongs_to_the_zoo(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GOOD)
    with pytest.raises(DataError, match="brings its own"):
        resolve_target(str(tmp_path / "net.py"), "imagefolder:x")


def make_folder(root: Path, classes: tuple[str, ...], images: int = 4) -> str:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (30 + i, 20), (60 * c, 10 * i, 0)).save(root / name / f"{i}.png")
    (root / "notes.txt").touch()
    return f"imagefolder:{root}"


def test_even_images_calibrate_and_odd_ones_validate(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", ("cat", "dog"))
    folder = image_folder(data, default_transform, 2)
    (images, labels), *more = folder.calibration
    assert images.shape == (4, 3, 224, 224)
    assert labels.tolist() == [0, 0, 1, 1]
    assert not more
    names = [path.name for path, _ in folder.validation.files]
    assert names == ["1.png", "3.png"] * 2
    assert len(folder.validation) == 1
    assert torch.equal(next(iter(folder.validation))[0], next(iter(folder.validation))[0])
    assert folder.note == ""


def test_batches_end_with_the_rest(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", ("cat",), images=10)
    files = image_folder(data, default_transform, 1).validation.files
    batches = ImageBatches(files, default_transform, size=2)
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("names", "outputs", "categories", "labels"),
    [
        (["a", "b"], 2, (), [0, 1]),
        (["0", "1", "10", "2"], 1000, (), [0, 1, 10, 2]),
        (["0217", "0482"], 1000, (), [217, 482]),
        (["golden_retriever", "tench"], 3, ("tench", "cat", "golden retriever"), [2, 0]),
        (["n01440764", "n02102040"], 1000, ("tench",), [0, 1]),
    ],
)
def test_labels(
    names: list[str], outputs: int, categories: tuple[str, ...], labels: list[int]
) -> None:
    assert class_labels(names, outputs, categories) == labels


def test_guessed_labels_are_told(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", ("n01", "n02"))
    note = image_folder(data, default_transform, 1000).note
    assert "2 class folders for 1000 outputs: 'n01' is taken for output 0" in note


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", ("0", "7"))
    with pytest.raises(DataError, match=r"must lie in 0\.\.4, but got 7"):
        image_folder(data, default_transform, 5)
    with pytest.raises(DataError, match="tells 1 classes apart, but the data has 2 folders"):
        image_folder(data, default_transform, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds 0"):
        image_folder(f"imagefolder:{tmp_path}/empty", default_transform, 5)
    with pytest.raises(DataError, match="there is no directory"):
        image_folder(f"imagefolder:{tmp_path}/none", default_transform, 5)
    with pytest.raises(DataError, match="the form imagefolder:DIR"):
        image_folder(str(tmp_path), default_transform, 5)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", ("cat",))
    (tmp_path / "data" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png' is not"):
        image_folder(data, default_transform, 5)


def test_the_zoo_needs_data_and_a_known_name(tmp_path: Path) -> None:
    torchvision()
    with pytest.raises(DataError, match="add --data imagefolder:DIR"):
        resolve_target("torchvision:resnet18")
    with pytest.raises(TargetError, match=r"no network 'resnet81'; did you mean .*resnet18"):
        resolve_target("torchvision:resnet81", needs_data=False)


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TargetError, match=r"pip install layernas-compressor\[timm\]"):
        resolve_target("timm:resnet18", needs_data=False)


def test_a_library_of_another_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(zoo.importlib, "import_module", broken)
    with pytest.raises(TargetError, match=r"nms does not exist.*of the same build"):
        resolve_target("torchvision:resnet18", needs_data=False)


def test_torchvision_brings_its_transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = torchvision().models
    real = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, **_: real(name, weights=None))
    data = make_folder(tmp_path / "data", ("tench", "goldfish"), images=2)
    target = resolve_target("torchvision:squeezenet1_1", data)
    assert target.example_input.shape == (1, 3, 224, 224)
    images, labels = next(iter(target.validation))
    assert images.shape == (2, 3, 224, 224)
    assert sorted(labels.tolist()) == [0, 1]
    assert not target.build_model().training


def test_timm_brings_its_configuration() -> None:
    torchvision()  # timm imports it
    pytest.importorskip("timm")
    target = resolve_target("timm:mobilenetv3_small_050", needs_data=False)
    assert target.example_input.shape == (1, 3, 224, 224)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    models = torchvision().models

    def offline(name: str, weights: object) -> nn.Module:
        raise OSError("Name or service not known")

    monkeypatch.setattr(models, "get_model", offline)
    target = resolve_target("torchvision:resnet18", needs_data=False)
    with pytest.raises(TargetError, match=r"could not be fetched: OSError.*write a target file"):
        target.build_model()


def test_a_detector_has_no_default_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = zoo._Pretrained(lambda: nn.Unflatten(1, (1, 3)), torch.zeros(1, 3), default_transform)
    monkeypatch.setattr(zoo, "_timm", lambda _: found)
    with pytest.raises(DataError, match="needs a classifier"):
        resolve_target("timm:x", make_folder(tmp_path / "data", ("a",)))
