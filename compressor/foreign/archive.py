"""The archive that `torch.export.save` writes, read as data: no code in it is run.

`torch.export.load` unpickles weights and custom objects and evaluates expressions, so that a file
can run whatever its author likes. Here the program is read as JSON and tensors as bytes; those few
that torch pickles pass `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from compressor.errors import TargetError

# `ScalarType` of torch's schema of exported programs.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_SCHEMA = 8  # major version of torch's schema; a reader of one does not understand another
_REPEATED = 1 << 24  # elements that a tensor may have by repeating fewer numbers


@dataclass(frozen=True)
class Archive:
    """What the archive holds.

    Attributes:
        program: the exported program as JSON.
        tensors: parameters, buffers and constants by name.
        learnt: which of them are parameters.
        example: tensors of the example inputs, in the order in which the program takes them.
    """

    program: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    learnt: frozenset[str]
    example: tuple[Tensor, ...]


def read_archive(path: Path) -> Archive:
    """Reads a `.pt2` file.

    Raises:
        TargetError: it is none, is damaged, or was written by a torch whose format is another.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _Reader(file, path).archive()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise TargetError(f"{str(path)!r} must be a whole .pt2 archive, but: {error}") from error
    except OSError as error:
        raise TargetError(
            f"{str(path)!r} cannot be read: {error.strerror or error}; give the file that "
            "torch.export.save wrote"
        ) from error


class _Reader:
    """Records of one archive."""

    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        self._file, self._path = file, path
        stored = [i for i in file.infolist() if i.compress_type == zipfile.ZIP_STORED]
        names = [info.filename for info in stored]
        # everything lies in one folder that is named like the file was
        self._names = {name.partition("/")[2]: name for name in names if "/" in name}

    def archive(self) -> Archive:
        self._check_kind()
        program = self._json("models/model.json")
        version = program.get("schema_version")
        major = version.get("major") if isinstance(version, Mapping) else None
        if major != _SCHEMA:
            raise self._wrong(
                f"its program has version {major} of torch's schema, and {_SCHEMA} is known; save "
                "the program again with this torch"
            )
        weights = self._tensors("weights")
        constants = self._tensors("constants")
        tensors = {n: t for n, (t, _) in {**weights, **constants}.items()}
        learnt = frozenset(n for n, (_, parameter) in weights.items() if parameter)
        return Archive(program, tensors, learnt, self._example())

    def _check_kind(self) -> None:
        if "models/model.json" not in self._names:
            compiled = any(name.startswith("data/aotinductor") for name in self._names)
            raise self._wrong(
                "it holds a compiled network; save the program before it is compiled"
                if compiled
                else "it holds no models/model.json; write it with torch.export.save of torch 2.8 "
                "or newer"
            )
        if "byteorder" in self._names and self._bytes("byteorder") != b"little":
            raise self._wrong("its numbers are in big-endian order; save it on another machine")

    def _tensors(self, kind: str) -> dict[str, tuple[Tensor, bool]]:
        """By name, with whether it is a parameter; what shares memory is one tensor."""
        made: dict[str, Tensor] = {}
        found: dict[str, tuple[Tensor, bool]] = {}
        config = self._json(f"data/{kind}/model_{kind}_config.json").get("config")
        if not isinstance(config, Mapping):
            raise self._wrong(f"its list of {kind} cannot be read")
        for name, entry in config.items():
            key = json.dumps(entry, sort_keys=True)
            try:
                if key not in made:
                    made[key] = self._tensor(f"data/{kind}/", entry)
                found[name] = made[key], bool(entry["is_param"])
            except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise self._wrong(f"the tensor {name!r} cannot be read: {error!r}") from error
        return found

    def _tensor(self, folder: str, entry: Mapping[str, Any]) -> Tensor:
        name = entry["path_name"]
        if not name.startswith(("weight_", "tensor_")):
            raise self._wrong(
                f"{name!r} is an object of a class of its own, which could run code; export a "
                "network of tensors alone"
            )
        if entry["use_pickle"]:
            loaded = self._loaded(folder + name)
            if not isinstance(loaded, Tensor):
                raise TypeError(f"{name!r} is no tensor")
            return loaded.detach()
        meta = entry["tensor_meta"]
        sizes, strides = (_integers(meta[key]) for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        if not math.prod(sizes):
            return torch.empty(sizes, dtype=dtype)
        flat = torch.frombuffer(bytearray(self._bytes(folder + name)), dtype=dtype)
        if math.prod(sizes) > max(len(flat), _REPEATED):
            raise ValueError(f"{len(flat)} numbers are said to be {list(sizes)}")
        offset = _integers([meta["storage_offset"]])[0]
        return flat.as_strided(sizes, strides, offset).contiguous()

    def _example(self) -> tuple[Tensor, ...]:
        name = "data/sample_inputs/model.pt"
        if name not in self._names or not self._file.getinfo(self._names[name]).file_size:
            raise self._wrong("it holds no example inputs; export it with them, as is the default")
        return tuple(t.cpu() for t in tree_leaves(self._loaded(name)) if isinstance(t, Tensor))

    def _loaded(self, name: str) -> Any:
        try:
            return torch.load(io.BytesIO(self._bytes(name)), weights_only=True, map_location="cpu")
        except Exception as error:  # torch.load raises whatever a broken file makes it raise
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self._wrong(
                f"{name!r} must hold tensors alone, but torch.load(weights_only=True) said: {line}"
            ) from error

    def _json(self, name: str) -> Mapping[str, Any]:
        try:
            found = json.loads(self._bytes(name))
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"{name!r} is no JSON: {error}") from error
        if not isinstance(found, Mapping):
            raise self._wrong(f"{name!r} is not as torch.export.save writes it")
        return found

    def _bytes(self, name: str) -> bytes:
        if name not in self._names:
            raise self._wrong(f"it lacks {name!r}; write it again with torch.export.save")
        return self._file.read(self._names[name])

    def _wrong(self, what: str) -> TargetError:
        return TargetError(f"{str(self._path)!r} cannot be read as an exported program: {what}")


def _integers(given: Any) -> tuple[int, ...]:
    """Sizes that are numbers, not expressions."""
    found = tuple(one["as_int"] for one in given)
    if not all(type(one) is int and one >= 0 for one in found):
        raise ValueError(f"sizes must be numbers, but are {found}")
    return found
