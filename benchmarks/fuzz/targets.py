"""Networks and data of somebody else: exported programs, ONNX files, checkpoints, tensors."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import torch
from safetensors.torch import save_file

from benchmarks.fuzz import network
from benchmarks.fuzz.mutate import broken_bytes, broken_json
from benchmarks.fuzz.mutate_files import break_bytes, break_kind, break_model, break_weights
from cli.hugging_face import hugging_face_target
from cli.tensor_data import tensor_data
from compressor.foreign.reading import read_file
from tests.vision import torchvision

PROGRAM, TENSORS, CHECKPOINT = "net.pt2", "data.safetensors", "checkpoint"
_NAME = "model"  # of the only folder in an exported program's archive
_BERT = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 32, "num_labels": 3,
}  # fmt: skip


def make_targets(folder: Path) -> None:
    """Writes an exported program, a checkpoint of `transformers`, and a file of tensors."""
    transformers = _transformers()
    folder.mkdir()
    example = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    size = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(network.build_model(), example, dynamic_shapes=size)
    torch.export.save(program, folder / PROGRAM)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(**_BERT))
    bert.save_pretrained(folder / CHECKPOINT)
    targets = torch.zeros(6, dtype=torch.int64)
    save_file({"inputs": torch.randn(6, 3, 8, 8), "targets": targets}, str(folder / TENSORS))


def _transformers() -> ModuleType:
    """The package; it imports torchvision, which may need help beside a CPU build of torch."""
    torchvision()
    return importlib.import_module("transformers")


def program(folder: Path, rng: Random) -> Callable[[], object]:
    """An exported program, whose records are broken one by one."""
    path = folder / PROGRAM
    if rng.random() < 0.08:
        break_kind(path, rng)
    elif rng.random() < 0.2:
        break_bytes(path, rng)
    else:
        _break_record(path, rng)
    return lambda: read_file(path)


def graph(folder: Path, rng: Random) -> Callable[[], object]:
    """An ONNX file as a target."""
    path = folder / rng.choice(("inside.onnx", "inside.onnx", "beside.onnx"))
    (break_kind if rng.random() < 0.06 else break_model)(path, rng)
    if rng.random() < 0.1:
        (break_kind if rng.random() < 0.5 else break_bytes)(folder / "beside.bin", rng)
    return lambda: read_file(path)


def checkpoint(folder: Path, rng: Random) -> Callable[[], object]:
    """A directory that `save_pretrained` made."""
    _transformers()  # before the clock runs
    place = folder / CHECKPOINT
    config, weights = place / "config.json", place / "model.safetensors"
    way = rng.random()
    if way < 0.1:
        break_kind(rng.choice((config, weights)), rng)
    elif way < 0.4:
        break_weights(weights, rng)
    elif way < 0.5:
        weights.rename(place / rng.choice(("pytorch_model.bin", "x.safetensors")))
    else:
        _break_config(config, rng)
    return lambda: hugging_face_target(f"hf:{place}", None, needs_data=False)


def tensors(folder: Path, rng: Random) -> Callable[[], object]:
    """Inputs as the network takes them."""
    path = folder / TENSORS
    (break_kind if rng.random() < 0.12 else break_weights)(path, rng)
    return lambda: tensor_data(f"tensors:{path}", ["x"], [network.example_input()])


def _break_record(path: Path, rng: Random) -> None:
    """One record of the archive with other values or bytes, gone, there twice, or packed."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    chosen = [name for name in records if not name.endswith((".data", "byteorder", "version"))]
    name = rng.choice(chosen)
    data, way = records[name], rng.random()
    if way < 0.1:
        del records[name]
    elif way < 0.2:
        records[f"{_NAME}/../../outside/{rng.choice('ab')}"] = data
    elif name.endswith(".json") and way < 0.85:
        text = broken_json(data.decode(), rng)
        records[name] = text.encode("utf-8", "surrogatepass")
    else:
        records[name] = broken_bytes(data, rng)
    if rng.random() < 0.05:
        records[name] = bytes(1 << 27)  # deflated, a few kilobytes
    packed = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as file:
        for one, content in records.items():
            file.writestr(one, content)
    path.write_bytes(out.getvalue())


def _break_config(config: Path, rng: Random) -> None:
    text = config.read_text(encoding="utf-8")
    if rng.random() < 0.3:
        given = json.loads(text)
        key = rng.choice(("architectures", "model_type", "auto_map", "torch_dtype", "vocab_size"))
        evil = {"AutoConfig": "evil.Evil"}
        odd = (["PreTrainedModel"], ["os"], "x", "llama", evil, 10**9, None, 0)
        given[key] = rng.choice(odd)
        text = json.dumps(given)
    else:
        text = broken_json(text, rng)
    config.write_text(text, encoding="utf-8", errors="surrogatepass")
