"""One cost for all tasks' networks together."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.cost import SizeTable, TableData


def together(tables: Sequence[SizeTable]) -> SizeTable:
    """The sum of the costs of several networks of one architecture.

    Raises:
        ValueError: the tables have different units.
    """
    units = {table.unit for table in tables}
    if len(units) != 1:
        raise ValueError(f"costs of one unit can be added, but got {sorted(units)}")
    parts = [table.data for table in tables]
    starts = [sum(len(p.sizes) for p in parts[:place]) for place in range(len(parts))]
    cuts = tuple(
        tuple(
            tuple(
                (start + axis, cut)
                for start, taken in zip(starts, options, strict=True)
                for axis, cut in taken
            )
            for options in zip(*layers, strict=True)
        )
        for layers in zip(*(p.cuts for p in parts), strict=True)
    )
    products = tuple(
        (weight, *(start + axis for axis in axes))
        for start, part in zip(starts, parts, strict=True)
        for weight, *axes in part.products
    )
    sizes = tuple(size for part in parts for size in part.sizes)
    return SizeTable(TableData(parts[0].unit, sum(p.fixed for p in parts), sizes, cuts, products))
