"""A probe's layers dealt to workers, so that the last of them is done as early as can be."""

from __future__ import annotations

from collections.abc import Sequence

_HALVINGS = 50  # of what the longest share may take: beyond what floats tell apart


def shares(costs: Sequence[float], start: float, workers: int) -> list[range]:
    """Layers that follow each other for every worker, at most one share each.

    A network is made from where it differs from the one before, so that of layers that follow each
    other nothing is computed twice. Who does not begin at the first layer has to come there.

    Args:
        costs: what each layer takes, above 0.
        start: what a share takes besides that does not begin at the first layer.
        workers: how many there are, at least one.

    Returns:
        All layers in order, none of the shares empty; the longest is as short as it can be.
    """
    if not costs:
        return []
    low, high, found = max(costs), sum(costs), [range(len(costs))]
    for _ in range(_HALVINGS):
        most = (low + high) / 2
        tried = _within(costs, start, most)
        if tried is None or len(tried) > workers:
            low = most
        else:
            high, found = most, tried
    return found


def _within(costs: Sequence[float], start: float, most: float) -> list[range] | None:
    """The fewest shares of which none takes longer; None where a single layer does."""
    ends, left = [0], most
    for layer, cost in enumerate(costs):
        if cost > left:
            ends.append(layer)
            left = most - start
        if cost > left:
            return None
        left -= cost
    return [range(a, b) for a, b in zip(ends, [*ends[1:], len(costs)], strict=True)]
