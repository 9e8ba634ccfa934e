"""Ways to break bytes, JSON and texts. Each takes a generator, so that a seed says what is done."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

_DEEP = "@deep@"
WORDS = (
    "", ".", "..", "../../outside/x", "/etc/passwd", "a\x00b", "\x1b[31m", "x" * 5000, "\ud800",
    "<script>alert(1)</script>", "{{ 7 * 7 }}", "$(touch outside)", "; touch outside", "%s%n",
    "NaN", "-1", "madds=50%", "torchvision:resnet18", "é" * 300, "\u202e", "features.0",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400,
    1e-320, 1e308, -1e308, 0.5, -0.0, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
_OF = {kind: [n for n in NUMBERS if type(n) is kind] for kind in (int, float)}


def broken_bytes(data: bytes, rng: Random) -> bytes:
    """The data cut short, with flipped bits, other stretches, or as something else altogether."""
    way = rng.choice(("cut", "flip", "flip", "flip", "head", "zero", "same", "twice", "huge", "no"))
    out = bytearray(data)
    size = max(len(data), 1)
    if way == "cut":
        return data[: rng.randrange(size)]
    if way in ("flip", "head"):
        most = min(size, 200) if way == "head" else size
        for _ in range(rng.choice((1, 2, 8, 40))):
            if out:
                out[rng.randrange(most) % len(out)] ^= 1 << rng.randrange(8)
        return bytes(out)
    if way == "no":
        return rng.choice((b"", b"\x00" * 64, b"PK\x03\x04", b"\x80\x04cos\nsystem\n", b"{}", b"["))
    start = rng.randrange(size)
    length = rng.randrange(1, 65)
    if way == "zero":
        out[start : start + length] = bytes(len(out[start : start + length]))
    elif way == "huge":
        out[start : start + 8] = b"\xff" * rng.choice((4, 8, 9))
    elif way == "same":
        other = rng.randrange(size)
        out[start : start + length] = out[other : other + length]
    else:
        out[start:start] = out[start : start + length] * rng.choice((1, 50))
    return bytes(out)


def broken_json(text: str, rng: Random) -> str:
    """The JSON text with a few values replaced, dropped or repeated."""
    if rng.random() < 0.1:
        return _nonsense(rng)
    data = json.loads(text)
    gentle = rng.random() < 0.5  # of the right types: further in than a check of types
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = nudged_value(data, rng) if gentle else broken_value(data, rng)
    return written(data, rng)


def nudged_value(data: Any, rng: Random) -> Any:
    """Plain values with one number or text changed to another of its type."""
    holder = [copy.deepcopy(data)]
    places = [(p, k) for p, k in _places(holder) if isinstance(p[k], (int, float, str))]
    if places:
        parent, key = rng.choice(places)
        parent[key] = _alike(parent[key], rng)
    return holder[0]


def broken_value(data: Any, rng: Random) -> Any:
    """Plain values with one of them changed."""
    holder = [copy.deepcopy(data)]
    places = list(_places(holder))
    parent, key = rng.choice(places)
    act = rng.random()
    if act < 0.12 and parent is not holder:
        del parent[key]
    elif act < 0.2 and isinstance(parent[key], list):
        parent[key] = parent[key] * rng.choice((0, 2, 1000))
    elif act < 0.27 and isinstance(parent[key], dict):
        parent[key][rng.choice(WORDS)] = value(rng)
    elif act < 0.32:
        other, place = rng.choice(places)
        if key in range(len(parent)) if isinstance(parent, list) else key in parent:
            parent[key] = copy.deepcopy(other[place])
    else:
        parent[key] = _alike(parent[key], rng) if rng.random() < 0.6 else value(rng)
    return holder[0]


def _alike(old: Any, rng: Random) -> Any:
    """Another value of the same type, where that has others."""
    if isinstance(old, str):
        return rng.choice(WORDS)
    if isinstance(old, bool) or not isinstance(old, (int, float)):
        return value(rng)
    near = (old + 1, old - 1, 2 * old, -old, old * 0)
    return type(old)(rng.choice(near)) if rng.random() < 0.7 else rng.choice(_OF[type(old)])


def value(rng: Random) -> Any:
    """A value of any type."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(NUMBERS), lambda: rng.choice(NUMBERS), lambda: rng.choice(WORDS),
        lambda: None, lambda: rng.random() < 0.5, list, dict, lambda: [rng.choice(NUMBERS)] * 3,
        lambda: {"a": rng.choice(WORDS)}, lambda: _DEEP, lambda: [0] * 100_000,
    )  # fmt: skip
    return rng.choice(kinds)()


def written(data: Any, rng: Random) -> str:
    """The values as text; what stands for deep nesting becomes so deep that few parsers take it."""
    text = json.dumps(data)
    while f'"{_DEEP}"' in text:
        depth = rng.choice((60, 900, 2000, 200_000))
        one, other = rng.choice((("[", "]"), ('{"a":', "}")))
        text = text.replace(f'"{_DEEP}"', f"{one * depth}0{other * depth}", 1)
    return text


def _nonsense(rng: Random) -> str:
    return rng.choice(
        (
            "",
            "null",
            "[]",
            "{}",
            "0",
            '"a"',
            "[" * 300_000,
            "{" * 10,
            "1" * 10_000,
            "NaN",
            "\ufeff{}",
        )
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key or index in it; children of long lists only now and then."""
    todo = [value]
    while todo:
        current = todo.pop()
        keys = list(current) if isinstance(current, dict) else range(min(len(current), 40))
        for key in keys:
            yield current, key
            if isinstance(current[key], (dict, list)):
                todo.append(current[key])


def broken_text(text: str, rng: Random) -> str:
    """A short text with characters added, dropped and doubled, or another one."""
    if rng.random() < 0.15:
        return str(value(rng)).replace("\ud800", "?")[:3000]
    letters = list(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(letters) + 1)
        act = rng.randrange(4)
        if act == 0 and letters:
            del letters[place % len(letters)]
        elif act == 1 and letters:
            letters[place % len(letters)] *= rng.choice((2, 400))
        elif act == 2:
            letters.insert(place, rng.choice("=%,.:;/-+e0919{}[]()'\"\\$`| \t\n\x00\x1béß€𝟙٣²∞"))
        else:
            letters.insert(place, rng.choice((*WORDS, "1e999", "9" * 400, "nan", "inf", "0x10")))
    return "".join(letters).replace("\ud800", "?")
