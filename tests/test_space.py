from __future__ import annotations

import json
from typing import Any

import pytest

from compressor.coupling import Coupling, IndexMap, Role
from compressor.errors import ArchitectureError
from compressor.space import ChannelGroup, Choice, Frozen, KernelCut, SearchLayer, SearchSpace


def _group(tensor: str, width: int, offset: int = 0, per_unit: int = 1) -> ChannelGroup:
    units = width // per_unit
    positions = [[offset + u + g * units for g in range(per_unit)] for u in range(units)]
    index = IndexMap.from_positions(positions)
    order = tuple(reversed(range(units)))  # unit 0 goes first
    couplings = (
        Coupling(tensor, 0, Role.PRODUCED, index),
        Coupling("next", 1, Role.CONSUMED, index),
    )
    return ChannelGroup(width, per_unit, order, couplings)


@pytest.fixture
def space() -> SearchSpace:
    widths = (Choice(2), Choice(4))
    return SearchSpace(
        (
            SearchLayer("a", ("a",), widths, _group("a.weight", 4)),
            SearchLayer("b", ("b",), widths, _group("b.weight", 4, offset=4, per_unit=2)),
            SearchLayer(
                "c",
                ("c", "c.bn"),
                (Choice(2, 3), Choice(4, 3), Choice(4, 5)),
                _group("c.weight", 4, offset=8),
                KernelCut("c.weight", 5, 2),
            ),
            SearchLayer(
                "d", ("d",), (Choice(kernel=1), Choice(kernel=3)), None, KernelCut("d", 3, 1)
            ),
        ),
        (Frozen("head", "its width is the number of classes"),),
    )


def test_ends_of_the_space(space: SearchSpace) -> None:
    assert space.sizes == (2, 2, 3, 2)
    assert space.original == (1, 1, 2, 1)
    assert space.smallest == (0, 0, 0, 0)


def test_original_removes_nothing(space: SearchSpace) -> None:
    assert space.removed(space.original) == {}
    assert space.kernels(space.original) == {}


def test_cuts_of_several_layers_meet_in_one_dimension(space: SearchSpace) -> None:
    removed = space.removed((0, 0, 0, 1))
    assert removed["a.weight", 0] == {0, 1}
    assert removed["b.weight", 0] == {4, 6}  # one unit: the same local channel of both groups
    assert removed["next", 1] == {0, 1, 4, 6, 8, 9}


def test_kernels_are_cut_alone_or_with_channels(space: SearchSpace) -> None:
    assert space.kernels((1, 1, 1, 0)) == {"c.weight": 3, "d": 1}
    assert space.removed((1, 1, 1, 0)) == {}


@pytest.mark.parametrize(
    ("architecture", "word"),
    [((1, 1, 2), "4 options"), ((1, 1, 3, 1), "'c'"), ((-1, 1, 2, 1), "'a'"), ((), "4 options")],
)
def test_foreign_architectures_are_refused(
    space: SearchSpace, architecture: tuple[int, ...], word: str
) -> None:
    with pytest.raises(ArchitectureError, match=word):
        space.removed(architecture)


def test_descriptions_are_readable(space: SearchSpace) -> None:
    assert space.describe((0, 1, 0, 0)) == {"a": "2 ch", "b": "4 ch", "c": "2 ch, k3", "d": "k1"}


def test_space_survives_json(space: SearchSpace) -> None:
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


def _paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(data, dict):
        keys: Any = list(data)
    else:
        keys = range(len(data)) if isinstance(data, list) else []
    for key in keys:
        found += _paths(data[key], (*path, key))
    return found


@pytest.mark.parametrize("junk", [None, 7, 0, -1, 1.5, "x", [], {}, [[]], float("inf"), True])
def test_any_broken_part_is_read_or_refused(space: SearchSpace, junk: object) -> None:
    text = json.dumps(space.to_json())
    for path in _paths(json.loads(text)):
        data = json.loads(text)
        part = data
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = junk
        try:
            again = SearchSpace.from_json(data)
            again.describe(again.original)
            again.removed(again.smallest)
            again.kernels(again.smallest)
        except ArchitectureError:
            pass


@pytest.mark.parametrize(
    "data", [None, [], {}, {"layers": []}, {"layers": 3, "frozen": []}, "text"]
)
def test_a_text_that_is_no_space_is_refused(data: object) -> None:
    with pytest.raises(ArchitectureError, match="cannot be read"):
        SearchSpace.from_json(data)
