"""What is sent to workers: a scorer with its network, library and data, as bytes.

Bytes go from this process to processes that it started, never to or from a file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor

from compressor.errors import UsageError
from compressor.score.scorer import Scorer
from compressor.workers.cluster import require_ray


def pack(scorer: Scorer) -> bytes:
    """A scorer as bytes; what it has learned of candidates stays here.

    Code is sent along where a worker could not import it: functions and classes of a target's file.
    Tensors on a GPU arrive on the worker's own.

    Raises:
        UsageError: something in it cannot be sent; the message says what.
    """
    with _by_value(_unfindable()):
        try:
            return _dumps(scorer)
        except Exception as error:
            what, why = next(
                ((name, found) for name, part in scorer.parts.items() if (found := _refusal(part))),
                ("something of it", error),
            )
            raise UsageError(
                "workers are sent what they score with, but "
                f"{what} cannot be sent: {type(why).__name__}: {why}; let it hold no open files, "
                "locks, generators or connections, or run with --workers 1"
            ) from error


def unpack(parcel: bytes) -> Scorer:
    """The scorer, on the other side."""
    found = require_ray().cloudpickle.loads(parcel)
    assert isinstance(found, Scorer)  # noqa: S101  (nobody else packs)
    return found


def _dumps(value: Any) -> bytes:
    pickling: Any = require_ray().cloudpickle  # imported only where it is used

    class Packer(pickling.CloudPickler):  # type: ignore[misc]  # that is why it is Any
        def reducer_override(self, part: Any) -> Any:
            if type(part) is Tensor and part.is_cuda:
                return _on_gpu, (part.detach().cpu(), part.requires_grad)
            return super().reducer_override(part)

    with io.BytesIO() as stream:
        Packer(stream).dump(value)
        return stream.getvalue()


def _on_gpu(tensor: Tensor, requires_grad: bool) -> Tensor:
    """A tensor that was on a GPU, on the one that this process may use."""
    return tensor.cuda().requires_grad_(requires_grad)


def _refusal(part: Any) -> Exception | None:
    try:
        _dumps(part)
    except Exception as error:  # noqa: BLE001 - that is the question
        return error
    return None


def _unfindable() -> Iterator[ModuleType]:
    """Modules that were loaded from a file by other means than their name.

    The script itself is none of them: it is sent by value anyway.
    """
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        script = name == "__main__" or getattr(module, "__name__", None) != name
        if script or "." in name or spec is None or not spec.has_location:
            continue
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        if not any(find is not None and find(name, None) for find in finders):
            yield module


@contextmanager
def _by_value(modules: Iterator[ModuleType]) -> Iterator[None]:
    pickling = require_ray().cloudpickle
    found = list(modules)
    for module in found:
        pickling.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in found:
            pickling.unregister_pickle_by_value(module)
