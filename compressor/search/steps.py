"""From a network to better ones nearby, by what its neighbours cost. Knows no torch.

What single steps cost was measured around one network and adds up only nearby. So the steps are
recombined under the limits as they are, and also with a toll on each layer that changes: few
changes that pay much can be trusted further than many that pay little.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TypeAlias

import numpy as np

from compressor.errors import SearchError
from compressor.search.kernels import Effects, Floats
from compressor.search.supply import Supply
from compressor.search.trend import Hints, require_form
from compressor.space import Architecture

Probe: TypeAlias = Callable[[Architecture], Hints]
"""For a network: what each option of each layer would cost there, lower is better; 0 for its own,
infinity for options that were not measured."""

_TOLLS = (0.3, 1.0, 2.0, 4.0)  # on each change, in typical effects of one


def steps(
    supply: Supply, base: Architecture, costs: Hints, seen: Container[Architecture]
) -> list[Architecture]:
    """New networks within the limits that should be better than the base, few changes last.

    Args:
        supply: recombines under the limits.
        base: the network that was probed.
        costs: what a `Probe` said of it.
        seen: networks that are not wanted.

    Raises:
        SearchError: the costs are not what a probe must return.
    """
    require_form("a probe", costs, supply.sizes)
    gains = -_table(base, costs)
    found: dict[Architecture, None] = {}
    effect = _typical(gains)
    for toll in _TOLLS if effect > 0 else ():
        network = supply.best(_tolled(gains, base, toll * effect), {base}, above=0.0)
        if network is not None and network not in seen:
            found[network] = None
    return list(found)


def _table(base: Architecture, costs: Hints) -> Floats:
    table = np.full((len(base), max(len(row) for row in costs)), np.inf)
    for layer, row in enumerate(costs):
        table[layer, : len(row)] = row
        if not all(cost > -np.inf for cost in row) or row[base[layer]] != 0:
            raise SearchError(
                "a probe must give 0 for a network's own option and numbers above -infinity, but "
                f"gave {list(row)} for layer {layer} with option {base[layer]}; correct the probe"
            )
    return table


def _typical(gains: Floats) -> float:
    """Median size of what single steps change; 0 where nothing was measured."""
    sizes = np.abs(gains[np.isfinite(gains) & (gains != 0)])
    return float(np.median(sizes)) if sizes.size else 0.0


def _tolled(gains: Floats, base: Architecture, toll: float) -> Effects:
    main = gains - toll
    main[np.arange(len(base)), base] = 0.0
    return Effects(main)
