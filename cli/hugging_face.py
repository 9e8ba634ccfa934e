"""Targets `hf:NAME_OR_DIR`: networks of Hugging Face's `transformers`, with data of the user's."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cli.file_target import builder, outputs
from cli.target import Target
from compressor.errors import DataError, TargetError
from compressor.foreign.steps import taking
from compressor.network.outputs import output_tensors

_TOKENS = 32  # of a text's example, where the network takes as many
_NONE = "write a target file whose build_model() loads your own copy"


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint: the network, what it takes, and how its images are prepared."""

    model: nn.Module
    names: tuple[str, ...]
    example: tuple[Tensor, ...]
    processing: Mapping[str, Any]
    labels: tuple[str, ...] = ()


def hugging_face_target(text: str, data: str | None, *, needs_data: bool) -> Target:
    """Loads a checkpoint, and its data.

    No code of the checkpoint is run, and nothing of it is unpickled.

    Raises:
        TargetError: `transformers` is missing, the checkpoint cannot be fetched or is of a network
            that `transformers` does not know, or its inputs are of another kind.
        DataError: `data` is missing or does not fit the network.
    """
    if data is None and needs_data:
        raise DataError(
            f"{text} has no data of its own; add --data imagefolder:DIR, where DIR holds "
            "DIR/<class>/*.jpg, or --data tensors:FILE.safetensors"
        )
    found = _load(text)
    example = found.example if len(found.example) > 1 else found.example[0]
    if data is None:
        return Target(text, builder(found.model), example)
    if data.startswith("tensors:"):
        from cli.tensor_data import tensor_data  # noqa: PLC0415

        read = tensor_data(data, found.names, found.example)
        return Target(text, builder(found.model), example, read.calibration, read.validation)
    return _with_images(text, data, found)


def _with_images(text: str, data: str, found: _Loaded) -> Target:
    from cli.imagefolder import image_folder  # noqa: PLC0415

    if found.names != ("pixel_values",):
        raise DataError(
            f"--data imagefolder needs a network that takes images, but {text} takes "
            f"{', '.join(found.names)}; give --data tensors:FILE.safetensors"
        )
    if not found.processing:
        raise DataError(
            f"{text} has no preprocessor_config.json, which says how images are prepared; save its "
            "image processor beside it, or give --data tensors:FILE.safetensors"
        )
    (image,) = found.example
    folder = image_folder(
        data, _prepared(found, text), outputs(found.model, image, text), found.labels
    )
    return Target(
        text,
        builder(found.model),
        image,
        folder.calibration,
        folder.validation,
        note=folder.note,
    )


def _load(text: str) -> _Loaded:
    name = text.partition(":")[2]
    if not name:
        raise TargetError("hf:NAME_OR_DIR needs a name, as in hf:google/vit-base-patch16-224")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise TargetError(f"{text} must be a directory made by save_pretrained, but there is none")
    name = str(Path(name).expanduser())
    library = _library()
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    config = _fetched(
        text, lambda: library.AutoConfig.from_pretrained(name, trust_remote_code=False)
    )
    if hasattr(config, "use_cache"):
        config.use_cache = False
    kind = _kind(library, config, text)
    model, info = _fetched(
        text,
        lambda: kind.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        ),
    )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise TargetError(
            f"every weight must be in the checkpoint, but {text} lacks {', '.join(missing[:5])}"
            f"{' and more' if len(missing) > 5 else ''}, which would be random; fine-tune it "
            "first, or save the network that was trained"
        )
    processing = _processing(name)
    names, example = _inputs(model, config, processing, text)
    model.__class__ = taking(_plainly(kind, names), names)
    labels = getattr(config, "id2label", None) or {}
    ordered = tuple(str(labels[i]) for i in sorted(labels)) if isinstance(labels, dict) else ()
    return _Loaded(model.eval(), names, example, processing, ordered)


def _library() -> ModuleType:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("transformers")
    except (ImportError, RuntimeError) as error:  # as a compiled part says beside another torch
        raise TargetError(
            f"hf:NAME_OR_DIR needs transformers, which cannot be imported ({error}); "
            "`pip install layernas-compressor[transformers]`"
        ) from error


def _kind(library: ModuleType, config: Any, text: str) -> Any:
    """The class that the checkpoint was saved as."""
    names = getattr(config, "architectures", None)
    names = names if isinstance(names, list) else []
    named = bool(names) and isinstance(names[0], str)
    try:
        kind = getattr(library, names[0], None) if named else None
    except (ImportError, RuntimeError) as error:  # it imports a network's module only now
        raise TargetError(
            f"transformers cannot import {names[0]} for {text}: {str(error).splitlines()[0]}; "
            "install what that network needs (torchvision must be of the same build as torch)"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)):
        known = names[0] if names else "none"
        raise TargetError(
            f"the checkpoint {text} must name a network that transformers "
            f"{library.__version__} knows, but names {known}; code of a checkpoint is not run: "
            f"{_NONE}"
        )
    return kind


def _fetched(text: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # transformers and its hub have errors of many kinds
        lines = str(error).strip().splitlines() or [""]
        raise TargetError(
            f"{text} could not be loaded: {type(error).__name__}: {lines[0][:300]}; give the name "
            "of a checkpoint that transformers knows, or a directory made by save_pretrained; "
            f"where it needs code of its own, {_NONE}"
        ) from error


def _processing(name: str) -> Mapping[str, Any]:
    """How the checkpoint says that images are prepared; empty where it does not."""
    base = importlib.import_module("transformers.image_processing_base")
    try:
        found, _ = base.ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _inputs(
    model: Any, config: Any, processing: Mapping[str, Any], text: str
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Names of the inputs, and an example; noise, because zeros would hide a wrong cut."""
    generator = torch.Generator().manual_seed(0)
    main = getattr(model, "main_input_name", "")
    if main == "pixel_values":
        height, width = _image_size(config, processing)
        channels = getattr(config, "num_channels", 3)
        return (main,), (torch.randn(1, channels, height, width, generator=generator),)
    if main == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS) or _TOKENS)
        tokens = torch.randint(0, config.vocab_size, (1, length), generator=generator)
        return (main, "attention_mask"), (tokens, torch.ones_like(tokens))
    raise TargetError(
        f"a network must take pixel_values or input_ids, but {text} takes {main or 'others'}; "
        f"{_NONE}, and example_input() what it takes"
    )


def _image_size(config: Any, processing: Mapping[str, Any]) -> tuple[int, int]:
    cropped = processing.get("crop_size") if processing.get("do_center_crop") else None
    for given in (cropped, processing.get("size"), getattr(config, "image_size", None)):
        if isinstance(given, int):
            return given, given
        if isinstance(given, list | tuple) and len(given) == 2:
            return int(given[0]), int(given[1])
        if isinstance(given, dict) and {"height", "width"} <= given.keys():
            return int(given["height"]), int(given["width"])
        if isinstance(given, dict) and "shortest_edge" in given:
            return int(given["shortest_edge"]), int(given["shortest_edge"])
    return 224, 224


def _prepared(found: _Loaded, text: str) -> Any:
    """The image processor's own numbers."""
    from PIL import Image  # noqa: PLC0415

    from cli.imagefolder import Prepared  # noqa: PLC0415

    given = found.processing
    height, width = map(int, found.example[0].shape[2:])
    try:
        how = Prepared(
            height,
            width,
            _enlarged(given, min(height, width)),
            mean=tuple(map(float, given.get("image_mean") or [0.5] * 3)),
            deviation=tuple(map(float, given.get("image_std") or [0.5] * 3)),
            scale=float(given.get("rescale_factor", 1 / 255)),
            resample=Image.Resampling(given.get("resample", Image.Resampling.BILINEAR)),
        )
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"preprocessor_config.json of {text} must say how images are normalised, but: {error}"
        ) from error
    if not given.get("do_normalize", True):
        how = replace(how, mean=(0.0,) * 3, deviation=(1.0,) * 3)
    return how if given.get("do_rescale", True) else replace(how, scale=1.0)


def _enlarged(given: Mapping[str, Any], short: int) -> float | None:
    """What images are resized to, as a multiple of what is cut out; None without a cut."""
    size = given.get("size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    if given.get("do_center_crop"):
        return float(edge or _image_size(None, {"size": size})[0]) / short
    if edge is None:
        return None
    return 1 / float(given.get("crop_pct") or 1)


@functools.cache
def _plainly(kind: Any, names: tuple[str, ...]) -> Any:
    """The class of a network that takes its inputs by place and returns tensors alone.

    Modules and parameters keep their names, as they would not in a module around it.
    """

    def forward(self: Any, *inputs: Tensor) -> Any:
        given = dict(zip(names, inputs, strict=True))
        return _plain(kind.forward(self, **given, return_dict=True))

    own = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {**own, "forward": forward})


def _plain(found: Any) -> Any:
    """Logits where there are any, else all tensors."""
    logits = found.get("logits") if hasattr(found, "get") else None
    if isinstance(logits, Tensor):
        return logits
    tensors = tuple(output_tensors(found))
    return tensors[0] if len(tensors) == 1 else tensors
