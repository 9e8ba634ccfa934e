"""Frozen dataclasses to JSON values and back, with the types checked. Knows no torch."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
# What every reader of a number can hold; NaN is within neither.
_MOST = {bool: 1, int: 2**63 - 1, float: sys.float_info.max}


def encode(value: object) -> Any:
    """Plain JSON values for a dataclass of dataclasses, tuples, mappings and scalars.

    Infinite and undefined numbers become null: JSON has no word for them.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def decode(kind: type[T], data: object, path: str = "") -> T:
    """Inverse of `encode` for a dataclass; unknown keys are passed over.

    Raises:
        ValueError: a key is missing or holds another type, or a number is not finite or takes
            more than 64 bits; the message names its path.
    """
    return cast(T, _decode(kind, data, path))


def _decode(kind: Any, data: object, path: str) -> object:
    if is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, path)
    if origin is Literal:
        if data in args:
            return data
        words = ", ".join(map(repr, args))
        raise ValueError(f"{path!r} must be one of {words}, but got {data!r:.60}")
    if origin is tuple:
        items = _expect(list, data, path)
        return tuple(_decode(args[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        entries = _expect(dict, data, path)
        return {k: _decode(args[1], v, f"{path}.{k}") for k, v in entries.items()}
    return _decode_scalar(kind, data, path)


def _decode_dataclass(kind: Any, data: object, path: str) -> object:
    entries = _expect(dict, data, path)
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        inner = f"{path}.{field.name}".lstrip(".")
        if field.name in entries:
            values[field.name] = _decode(hints[field.name], entries[field.name], inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{inner!r} is missing")
    return kind(**values)


def _decode_union(kinds: tuple[Any, ...], data: object, path: str) -> object:
    if data is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _decode(kind, data, path)
            except ValueError as error:
                last = error
    raise last


def _decode_scalar(kind: Any, data: object, path: str) -> object:
    if isinstance(data, int | float) and not abs(data) <= _MOST[type(data)]:
        shown = "too large" if isinstance(data, float) else f"beyond ±{_MOST[int]}"
        raise ValueError(f"{path or 'the whole'!r} must be a number of 64 bits, but is {shown}")
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    # `True` is an `int` to Python, but no number to a reader of the file
    if isinstance(data, bool) and kind is not bool:
        raise _wrong(kind, data, path)
    return _expect(kind, data, path)


def _expect(kind: type[T], data: object, path: str) -> T:
    if not isinstance(data, kind):
        raise _wrong(kind, data, path)
    return data


def _wrong(kind: type, data: object, path: str) -> ValueError:
    shown = repr(data)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ValueError(f"{path or 'the whole'!r} must be of type {kind.__name__}, but got {shown}")
