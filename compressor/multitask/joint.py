"""One order of channels for all tasks, and one cost for all their networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compressor.cost import SizeTable, TableData
from compressor.refit.library import LayerLibrary
from compressor.space import SearchLayer


def jointly_ranked(
    libraries: Sequence[LayerLibrary], importances: Sequence[float]
) -> tuple[LayerLibrary, ...]:
    """The libraries, all with the order of channels that the tasks agree on best.

    A unit's place is the mean of its places in the tasks' own orders, weighted by the tasks'
    importances; of equal ones the earlier unit comes first. Places are compared and not
    importances of units, because an elimination gives an order and nothing else.
    """
    columns = zip(*(library.space.layers for library in libraries), strict=True)
    orders = [_order(layers, importances) for layers in columns]
    return tuple(
        replace(
            library,
            space=replace(
                library.space,
                layers=tuple(
                    _ordered(x, o) for x, o in zip(library.space.layers, orders, strict=True)
                ),
            ),
        )
        for library in libraries
    )


def _order(layers: Sequence[SearchLayer], importances: Sequence[float]) -> tuple[int, ...]:
    places: dict[int, float] = {}
    for layer, importance in zip(layers, importances, strict=True):
        for place, unit in enumerate(layer.group.order if layer.group else ()):
            places[unit] = places.get(unit, 0.0) + importance * place
    return tuple(sorted(places, key=lambda unit: (places[unit], unit)))


def _ordered(layer: SearchLayer, order: tuple[int, ...]) -> SearchLayer:
    return replace(layer, group=replace(layer.group, order=order)) if layer.group else layer


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
