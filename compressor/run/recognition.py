"""What tells one run from another beyond tensors: the score's code, and training data."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from compressor.network.data import Batches, batches_hash, steady

_BATCHES = 2  # of the training data: a pass over all of it may take minutes
UNKNOWN = "not known"


def code_hash(score: Callable[..., Any]) -> str:
    """SHA-256 over the source of a function, and of what it names in its own module.

    Other modules, files that it reads, and values that it holds are not covered.

    Returns:
        `UNKNOWN` where there is no source to read, as for a function typed into a shell.
    """
    pieces: dict[str, str] = {}
    try:
        for named in _reached(_function(score)):
            pieces[f"{named.__module__} {named.__qualname__}"] = inspect.getsource(named)
    except (OSError, TypeError):
        return UNKNOWN
    text = "\n".join(f"{name}\n{pieces[name]}" for name in sorted(pieces))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() if pieces else UNKNOWN


def _function(score: Any) -> Any:
    while isinstance(score, functools.partial):
        score = score.func
    if inspect.isfunction(score) or inspect.isclass(score):
        return score
    return getattr(score, "__func__", type(score))


def _reached(first: Any) -> Iterator[Any]:
    """A function or class, and those of its module that it names, and so on."""
    todo, seen = [first], set()
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        functions = _functions(current)
        for function in functions:
            found = (function.__globals__.get(name) for name in _names(function.__code__))
            todo += [x for x in found if _of(x, current.__module__)]


def _functions(named: Any) -> list[FunctionType]:
    if inspect.isfunction(named):
        return [named]
    return [value for value in vars(named).values() if inspect.isfunction(value)]


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _of(found: Any, module: str) -> bool:
    named = inspect.isfunction(found) or inspect.isclass(found)
    return named and getattr(found, "__module__", None) == module


def training_hash(batches: Batches) -> str:
    """SHA-256 over the first batches, or `UNKNOWN` where two readings of them differ.

    Data that torch's generator shuffles reads the same; what another generator shuffles does not.
    """
    once, again = (batches_hash(_first(batches)) for _ in range(2))
    return once if once == again else UNKNOWN


def _first(batches: Batches) -> list[Any]:
    return [batch for batch, _ in zip(steady(batches), range(_BATCHES), strict=False)]
