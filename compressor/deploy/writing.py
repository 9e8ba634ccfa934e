"""ONNX files that take their name only when everything holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx

from compressor.device.measure import Session, Settings, create_session
from compressor.errors import ExportError, MeasureError, reason_of

_LARGEST = 2**31 - 1  # what one protobuf message, and so one ONNX file, can hold


def checked_bytes(proto: onnx.ModelProto) -> bytes:
    """The graph as a file's content.

    Raises:
        ExportError: it is no valid ONNX, or larger than a file can be.
    """
    try:
        if proto.ByteSize() > _LARGEST:
            raise ExportError(
                f"one ONNX file holds at most 2 GiB, but the network takes {proto.ByteSize():,} "
                "bytes; compress it further or export it in half precision"
            )
        onnx.checker.check_model(proto)
        return bytes(proto.SerializeToString())
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {reason_of(error)}") from error


def loaded(path: Path) -> Session:
    """The file in ONNX Runtime.

    Raises:
        ExportError: it does not load.
    """
    try:
        return create_session(path, Settings())
    except MeasureError as error:
        raise ExportError(
            f"the exported file must run, but {error}; try another --opset"
        ) from error


@contextlib.contextmanager
def temporary(path: Path, data: bytes) -> Iterator[Path]:
    """The data under a name beside `path`; it takes the name of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ExportError(
            f"the ONNX file must be writable, but {path}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
