"""Which numbers stand at equal places of two tensors."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.elements import pairs

IDS = st.integers(min_value=0, max_value=1 << 40)


@given(st.lists(st.tuples(IDS | st.integers(0, 3), st.integers(0, 1 << 20)), max_size=20))
def test_each_pair_is_told_once_in_order(found: list[tuple[int, int]]) -> None:
    one, other = (torch.tensor([pair[i] for pair in found], dtype=torch.int64) for i in (0, 1))
    told = pairs(one, other)
    assert list(zip(*(side.tolist() for side in told), strict=True)) == sorted(set(found))
