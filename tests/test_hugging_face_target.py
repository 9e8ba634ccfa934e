"""`hf:NAME_OR_DIR`: checkpoints of `transformers`, here tiny ones with random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cli import hugging_face
from cli.resolve import resolve_target
from cli.target import Target
from compressor.deploy.export import export_onnx
from compressor.errors import DataError, TargetError
from compressor.network.data import as_inputs
from compressor.run.pipeline import compress
from compressor.run.reading import describe, read_network
from tests.vision import torchvision

torchvision()  # transformers imports it where it is installed
transformers = pytest.importorskip(
    "transformers", reason="the extra `transformers` is not installed"
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def vit() -> Any:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            image_size=32, patch_size=8, num_labels=5,
        )
    )  # fmt: skip


def resnet() -> Any:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
            num_labels=2,
        )
    )  # fmt: skip


def segformer() -> Any:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
            patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2],
            decoder_hidden_size=32, num_labels=5, image_size=64,
        )
    )  # fmt: skip


def bert() -> Any:
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            vocab_size=50,
        )
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], Any], float]] = {
    "vit": (vit, 0.7), "resnet": (resnet, 1.0), "segformer": (segformer, 0.8), "bert": (bert, 0.9),
}  # fmt: skip
PROCESSING = {
    "do_resize": True, "size": {"height": 32, "width": 32}, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.1], "resample": 2, "image_processor_type": "ViTImageProcessor",
}  # fmt: skip


def saved(name: str, path: Path, processing: dict[str, Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name][0]().eval()
    model.save_pretrained(path)
    if processing:
        (path / "preprocessor_config.json").write_text(json.dumps(processing))
    return model  # type: ignore[no-any-return]


def images(path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (path / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (50, 40), (i * 50, number * 200, 9)).save(path / name / f"{i}.png")
    return path


def read(path: Path, **options: Any) -> Target:
    return resolve_target(f"hf:{path}", needs_data=False, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_network_that_was_saved_and_can_be_read_and_exported(
    tmp_path: Path, name: str
) -> None:
    model = saved(name, tmp_path / "net")
    target = read(tmp_path / "net")
    found, inputs = target.build_model(), as_inputs(target.example_input)
    with torch.no_grad():
        want = model(*inputs[:1]) if name != "bert" else model(*inputs)
    want = want["logits"] if "logits" in want else want.to_tuple()
    got = found(*inputs)
    for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (want, got)), strict=True):
        assert torch.equal(a, b)
    assert [n for n, _ in found.named_parameters()] == [n for n, _ in model.named_parameters()]
    shown = describe(read_network(found, inputs), (None, ""))
    assert shown.share > NETWORKS[name][1] - 0.01
    report = export_onnx(found, inputs, tmp_path / "net.onnx")
    assert report.batch_sizes == (1, 3)
    assert report.input_names[0] in ("pixel_values", "input_ids")


def test_images_are_prepared_as_the_checkpoint_says(tmp_path: Path) -> None:
    saved("vit", tmp_path / "net", PROCESSING)
    folder = images(tmp_path / "images")
    target = resolve_target(f"hf:{tmp_path / 'net'}", f"imagefolder:{folder}")
    batch, labels = target.calibration[0]  # type: ignore[index]  # a list
    assert batch.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1]
    first = torch.tensor([(0 / 255 - 0.5) / 0.2, (0 / 255 - 0.4) / 0.2, (9 / 255 - 0.3) / 0.1])
    assert torch.allclose(batch[0], first[:, None, None].expand(3, 32, 32), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "size", "enlarged"),
    [
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": 48}, 48, 64 / 48),
        ({"size": {"shortest_edge": 48}, "crop_pct": 0.75}, 48, 1 / 0.75),
        ({"size": 24}, 24, None),
        ({"size": {"height": 40, "width": 40}}, 40, None),
        ({"crop_size": {"height": 20, "width": 20}, "do_center_crop": True,
          "size": {"height": 30, "width": 30}}, 20, 1.5),
    ],
)  # fmt: skip
def test_sizes_come_from_the_image_processor(
    tmp_path: Path, given: dict[str, Any], size: int, enlarged: float | None
) -> None:
    plain = {k: v for k, v in PROCESSING.items() if k != "size"}
    saved("resnet", tmp_path / "net", {**plain, **given})
    folder = images(tmp_path / "images")
    target = resolve_target(f"hf:{tmp_path / 'net'}", f"imagefolder:{folder}")
    batches: Any = target.validation
    assert target.example_input.shape == (1, 3, size, size)  # type: ignore[union-attr]  # a tensor
    assert batches.transform.enlarged == (pytest.approx(enlarged) if enlarged else None)


def test_a_checkpoint_is_compressed(tmp_path: Path) -> None:
    saved("vit", tmp_path / "net", PROCESSING)
    folder = images(tmp_path / "images")
    target = resolve_target(f"hf:{tmp_path / 'net'}", f"imagefolder:{folder}")
    result = compress(
        target.build_model(), target.example_input, budget="madds=70%", evaluations=2,
        calibration=target.calibration, validation=target.validation, out=tmp_path / "run",
    )  # fmt: skip
    assert result.onnx_path is not None
    assert result.onnx_path.is_file()
    assert result.summary.best.madds <= 0.7 * result.summary.base.madds


def test_a_text_takes_tensors(tmp_path: Path) -> None:
    saved("bert", tmp_path / "net")
    tokens = torch.randint(0, 50, (10, 32))
    held = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    save_file(held, tmp_path / "x.safetensors")
    target = resolve_target(f"hf:{tmp_path / 'net'}", f"tensors:{tmp_path / 'x.safetensors'}")
    ((inputs, targets),) = target.calibration
    assert [t.shape for t in inputs] == [(5, 32), (5, 32)]
    assert targets is None
    with pytest.raises(DataError, match=r"takes images, but .* takes input_ids, attention_mask"):
        resolve_target(f"hf:{tmp_path / 'net'}", f"imagefolder:{tmp_path}")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("vit", tmp_path / "net")
    with pytest.raises(DataError, match="has no data of its own"):
        resolve_target(f"hf:{tmp_path / 'net'}")
    with pytest.raises(DataError, match=r"no preprocessor_config\.json"):
        resolve_target(f"hf:{tmp_path / 'net'}", f"imagefolder:{tmp_path}")
    with pytest.raises(TargetError, match="made by save_pretrained, but there is none"):
        read(tmp_path / "gone")
    with pytest.raises(TargetError, match="needs a name"):
        resolve_target("hf:", needs_data=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TargetError, match=r"pip install layernas-compressor\[transformers\]"):
        read(tmp_path / "net")


def test_a_network_that_cannot_be_imported_is_named() -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ModuleNotFoundError(f"Could not import module '{name}'.")

    with pytest.raises(TargetError, match="cannot import ViTForImageClassification for hf:net"):
        hugging_face._kind(Broken("transformers"), vit().config.__class__(
            architectures=["ViTForImageClassification"]
        ), "hf:net")  # fmt: skip


def changed(path: Path, **config: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path / "net")
    weights = load_file(tmp_path / "net" / "model.safetensors")
    kept = {n: t for n, t in weights.items() if not n.startswith("classifier")}
    save_file(kept, tmp_path / "net" / "model.safetensors", {"format": "pt"})
    with pytest.raises(TargetError, match=r"lacks classifier\.bias, classifier\.weight"):
        read(tmp_path / "net")


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    saved("vit", tmp_path / "net")
    mark = tmp_path / "ran"
    (tmp_path / "net" / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    changed(
        tmp_path / "net", model_type="mine", architectures=["Mine"],
        auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Mine"},
    )  # fmt: skip
    with pytest.raises(TargetError, match="could not be loaded"):
        read(tmp_path / "net")
    assert not mark.exists()


def test_weights_are_not_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    saved("vit", tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").unlink()
    torch.save({"classifier.weight": Bomb()}, tmp_path / "net" / "pytorch_model.bin")
    with pytest.raises(TargetError, match="could not be loaded"):
        read(tmp_path / "net")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["Nothing"]}, "must name a network that transformers .* names Nothing"),
        ({"architectures": ["AutoConfig"]}, "must name a network"),
        ({"architectures": None}, "names none"),
        ({"architectures": {"a": "b"}}, "names none"),
        ({"architectures": 7}, "names none|could not be loaded"),
        ({"model_type": "nothing"}, "could not be loaded"),
        ({"hidden_size": "wide"}, "could not be loaded"),
        ({"hidden_size": 64}, "could not be loaded"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    saved("vit", tmp_path / "net")
    changed(tmp_path / "net", **config)
    with pytest.raises(TargetError, match=said):
        read(tmp_path / "net")


def test_damaged_files(tmp_path: Path) -> None:
    saved("vit", tmp_path / "net")
    weights = tmp_path / "net" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(TargetError, match="could not be loaded"):
        read(tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text("{")
    with pytest.raises(TargetError, match="could not be loaded"):
        read(tmp_path / "net")


def test_a_name_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refused)
    with pytest.raises(TargetError, match="hf:nobody/nothing could not be loaded: OSError: We"):
        resolve_target("hf:nobody/nothing", needs_data=False)
