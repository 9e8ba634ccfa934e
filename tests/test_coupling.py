from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.coupling import Coupling, IndexMap, Role, Run
from compressor.errors import AdapterError


@st.composite
def _positions(draw: st.DrawFn) -> list[list[int]]:
    """Any assignment of distinct positions, equally many for each unit."""
    units, per_unit = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    total = units * per_unit
    places = draw(st.permutations(range(total + draw(st.integers(0, 3)))))
    return [sorted(places[u * per_unit : (u + 1) * per_unit]) for u in range(units)]


@given(_positions(), st.data())
def test_positions_survive_the_compression(positions: list[list[int]], data: st.DataObject) -> None:
    index = IndexMap.from_positions(positions)
    for unit, places in enumerate(positions):
        assert index.positions([unit]) == places
    chosen = data.draw(st.sets(st.integers(0, len(positions) - 1)))
    assert index.positions(chosen) == sorted(p for u in chosen for p in positions[u])
    assert index.per_unit == len(positions[0])
    assert index.end == max(p for places in positions for p in places) + 1


@given(_positions())
def test_index_maps_survive_json(positions: list[list[int]]) -> None:
    index = IndexMap.from_positions(positions)
    assert IndexMap.from_json(json.loads(json.dumps(index.to_json()))) == index


@pytest.mark.parametrize(
    ("positions", "run"),
    [
        ([[0], [1], [2]], Run(0, 3, 0, 1, 1)),
        ([[4], [5], [6]], Run(0, 3, 4, 1, 1)),  # behind a concatenation
        ([[0, 1, 2], [3, 4, 5]], Run(0, 2, 0, 3, 3)),  # behind a flatten
    ],
)
def test_regular_patterns_take_a_single_run(positions: list[list[int]], run: Run) -> None:
    assert IndexMap.from_positions(positions).runs == (run,)


def test_grouped_strides_take_a_run_for_each_group() -> None:
    index = IndexMap.from_positions([[0, 4], [1, 5], [2, 6], [3, 7]])
    assert index.runs == (Run(0, 4, 0, 1, 1), Run(0, 4, 4, 1, 1))
    assert index.per_unit == 2


def test_identity_maps_units_to_themselves() -> None:
    index = IndexMap.identity(4)
    assert index.positions([3, 1]) == [1, 3]
    assert (index.per_unit, index.end) == (1, 4)


@pytest.mark.parametrize("positions", [[], [[]], [[0], [1, 2]], [[0], []]])
def test_units_of_unequal_size_are_refused(positions: list[list[int]]) -> None:
    with pytest.raises(AdapterError, match="same number"):
        IndexMap.from_positions(positions)


@pytest.mark.parametrize("role", list(Role))
def test_couplings_survive_json(role: Role) -> None:
    coupling = Coupling("features.0.weight", 1, role, IndexMap.identity(3))
    assert Coupling.from_json(json.loads(json.dumps(coupling.to_json()))) == coupling
