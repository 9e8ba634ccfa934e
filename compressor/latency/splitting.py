"""Which operators every architecture of a space runs, learnt from some of them. Knows no torch.

What the runtime makes of a network is asked for a few dozen architectures. Every operator's form,
and each of its sizes, turns out to follow one or two search layers; so the operators of all other
architectures are known, and that is checked on architectures that nothing was learnt from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from compressor.errors import ExportError
from compressor.latency.operators import Form, Operator
from compressor.space import Architecture

Look: TypeAlias = Callable[[Architecture], Sequence[Operator]]
_Cell: TypeAlias = tuple[int, ...]
_Value = TypeVar("_Value")

_EACH = 4  # architectures in which every option is seen at the start
_CHECKED = 12  # new architectures that must run what is expected
_ALL = 64  # so few architectures are all looked at, and nothing is left to be learnt
_MOST = 400  # architectures that are looked at before the network counts as too entangled
_CELLS = 20_000  # combinations of options that one operator may depend on
_EVIDENCE = 4  # share of the architectures that must repeat a pair of options: one in so many


@dataclass(frozen=True)
class Part:
    """One operator of the network for every option of the layers that it depends on.

    Attributes:
        key: what the operator is called.
        layers: positions of the layers that it depends on, ascending.
        cells: the operator for their options; None where the network then does without it.
    """

    key: str
    layers: tuple[int, ...]
    cells: Mapping[_Cell, Operator | None]


def split(sizes: Sequence[int], look: Look, seed: int = 0) -> tuple[Part, ...]:
    """The parts that every architecture is put together from.

    Args:
        sizes: number of options of each layer.
        look: the operators that an architecture runs; asked of some dozens.
        seed: which ones.

    Raises:
        ExportError: an operator depends on too many layers at once, or `look` raises it.
    """
    rng = np.random.default_rng(seed)
    seen: dict[Architecture, dict[str, Operator]] = {}
    few = math.prod(sizes) <= _ALL
    wanted = _every(sizes) if few else _spread(sizes, _EACH * max(sizes), rng)
    while len(seen) <= _MOST:
        for architecture in wanted:
            seen[architecture] = {o.key: o for o in look(architecture)}
        rules = _rules(seen)
        parts, missing = _parts(rules, sizes)
        if missing:
            wanted = _containing(missing, sizes, rng)
            continue
        wanted = [a for a in _spread(sizes, _CHECKED, rng) if a not in seen]
        found = {a: {o.key: o for o in look(a)} for a in wanted}
        if all(operators_of(parts, a) == list(_sorted(f)) for a, f in found.items()):
            return parts
        seen |= found
        wanted = []
    raise ExportError(
        f"the operators of every architecture should be known after {_MOST} of them, but those of "
        "this network depend on each other in more ways; whole networks must be measured instead"
    )


def operators_of(parts: Sequence[Part], architecture: Architecture) -> list[Operator]:
    """The operators that an architecture runs, in the order of their keys."""
    cells = (part.cells[tuple(architecture[i] for i in part.layers)] for part in parts)
    return sorted((o for o in cells if o is not None), key=lambda o: o.key)


def _sorted(found: Mapping[str, Operator]) -> list[Operator]:
    return [found[key] for key in sorted(found)]


def _every(sizes: Sequence[int]) -> list[Architecture]:
    return list(itertools.product(*map(range, sizes)))


def _spread(sizes: Sequence[int], count: int, rng: np.random.Generator) -> list[Architecture]:
    """Random architectures in which every option of a layer occurs about equally often."""
    columns = [rng.permutation(np.arange(count) % size) for size in sizes]
    return [tuple(row) for row in np.array(columns).T.tolist()]


def _containing(
    missing: Sequence[Mapping[int, int]], sizes: Sequence[int], rng: np.random.Generator
) -> list[Architecture]:
    """Random architectures that have the missing combinations, several in each where possible."""
    left = list(missing)
    found: list[Architecture] = []
    while left and len(found) < _MOST:
        fixed: dict[int, int] = {}
        rest = []
        for cell in left:
            if any(fixed.get(layer, option) != option for layer, option in cell.items()):
                rest.append(cell)
            else:
                fixed |= cell
        drawn = [int(rng.integers(size)) for size in sizes]
        found.append(tuple(fixed.get(layer, option) for layer, option in enumerate(drawn)))
        left = rest
    return found


@dataclass(frozen=True)
class _Rule(Generic[_Value]):
    """A value as a function of the options of some layers."""

    layers: tuple[int, ...]
    values: Mapping[_Cell, _Value]


@dataclass(frozen=True)
class _OperatorRule:
    """The form of an operator, None where it is absent, and the sizes of each form."""

    form: _Rule[Form | None]
    sizes: Mapping[Form, Sequence[_Rule[int]]]

    @property
    def layers(self) -> tuple[int, ...]:
        sizes = itertools.chain(*self.sizes.values())
        return tuple(sorted({*self.form.layers, *(i for rule in sizes for i in rule.layers)}))


def _rules(seen: Mapping[Architecture, Mapping[str, Operator]]) -> dict[str, _OperatorRule]:
    networks = np.array(list(seen), dtype=np.int64)
    keys = sorted({key for found in seen.values() for key in found})
    return {key: _operator_rule(key, networks, [f.get(key) for f in seen.values()]) for key in keys}


def _operator_rule(
    key: str, networks: np.ndarray, found: Sequence[Operator | None]
) -> _OperatorRule:
    forms = [None if o is None else o.form for o in found]
    form = _rule(key, networks, forms)
    sizes: dict[Form, Sequence[_Rule[int]]] = {}
    for kind in {o.form for o in found if o is not None}:
        rows = [place for place, o in enumerate(found) if o is not None and o.form == kind]
        given = [o.sizes for o in found if o is not None and o.form == kind]
        sizes[kind] = [_rule(key, networks[rows], column) for column in zip(*given, strict=True)]
    return _OperatorRule(form, sizes)


def _rule(key: str, networks: np.ndarray, values: Sequence[_Value]) -> _Rule[_Value]:
    """The fewest layers, at most two, that the values follow."""
    if len(set(values)) == 1:
        return _Rule((), {(): values[0]})
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    marks = np.array([codes[value] for value in values])
    layers = range(networks.shape[1])
    for number in (1, 2):
        best: tuple[int, tuple[int, ...]] | None = None
        for some in itertools.combinations(layers, number):
            repeats = _repeats(networks[:, some], marks)
            if repeats is not None and (best is None or repeats > best[0]):
                best = repeats, some
        if best is not None and (number == 1 or best[0] * _EVIDENCE >= len(values)):
            cells = [tuple(row) for row in networks[:, best[1]].tolist()]
            return _Rule(best[1], dict(zip(cells, values, strict=True)))
    raise ExportError(
        f"an operator must follow the choices of one or two search layers, but {key!r} follows "
        "none or more; whole networks must be measured instead"
    )


def _repeats(options: np.ndarray, marks: np.ndarray) -> int | None:
    """How often options were seen again with the same value; None if with another one."""
    code = np.ravel_multi_index(options.T, options.max(axis=0) + 1)
    cells = len(np.unique(code))
    both = len(np.unique(code * (marks.max() + 1) + marks))
    return None if both > cells else len(marks) - cells


def _parts(
    rules: Mapping[str, _OperatorRule], sizes: Sequence[int]
) -> tuple[tuple[Part, ...], list[dict[int, int]]]:
    """Every part, and the combinations of options that are not known yet."""
    parts, missing = [], []
    for key, rule in rules.items():
        layers = rule.layers
        if math.prod(sizes[i] for i in layers) > _CELLS:
            raise ExportError(
                f"an operator may depend on at most {_CELLS} combinations of options, but {key!r} "
                f"depends on {len(layers)} layers; whole networks must be measured instead"
            )
        cells: dict[_Cell, Operator | None] = {}
        for cell in itertools.product(*(range(sizes[i]) for i in layers)):
            options = dict(zip(layers, cell, strict=True))
            unknown = _fill(key, rule, options, cells, cell)
            if unknown is not None:
                missing.append(unknown)
        parts.append(Part(key, layers, cells))
    return tuple(parts), missing


def _fill(
    key: str,
    rule: _OperatorRule,
    options: Mapping[int, int],
    cells: dict[_Cell, Operator | None],
    cell: _Cell,
) -> dict[int, int] | None:
    """Puts the operator of a combination into its cell, or returns the options to look at."""
    place = tuple(options[i] for i in rule.form.layers)
    if place not in rule.form.values:
        return {i: options[i] for i in rule.form.layers}
    form = rule.form.values[place]
    if form is None:
        cells[cell] = None
        return None
    found = []
    for size in rule.sizes[form]:
        place = tuple(options[i] for i in size.layers)
        if place not in size.values:
            return {i: options[i] for i in (*rule.form.layers, *size.layers)}
        found.append(size.values[place])
    cells[cell] = Operator(key, form, tuple(found))
    return None
