"""Ridge least squares on moments: refitting a weight to fewer inputs, and which inputs to drop.

A weight W `[O, D]` makes y = W x. With only the inputs S left, the best weight is
W C[:, S] (C[S, S] + ridge)⁻¹, where C is the covariance of x if a constant can be added to y
(a bias, or the mean of a BatchNorm), and the second moment if not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LOOKS = 64  # a 64th of the units that are left goes between two looks at the costs
RIDGE = 1e-3  # share of the mean variance that is added to every input's


def covariance(xx: Tensor, x: Tensor, count: int, *, centred: bool) -> Tensor:
    """Covariance or second moment `[D, D]` from sums."""
    if not centred:
        return xx / count
    mean = x / count
    return xx / count - torch.outer(mean, mean)


def ridged(moment: Tensor, ridge: float = RIDGE) -> Tensor:
    """The moment with the ridge on its diagonal; inputs that never vary stay solvable."""
    level = ridge * moment.diagonal().mean().clamp_min(1e-12)
    return moment + level * torch.eye(len(moment), dtype=moment.dtype)


def restricted(moment: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """The best weight `[O, |S|]` on the kept inputs.

    Args:
        moment: covariance or second moment `[D, D]`, float64.
        weight: original weight `[O, D]`.
        kept: indices S, ascending.
    """
    full = ridged(moment)
    system = full[kept][:, kept]
    wanted = full[kept] @ weight.double().T
    solution: Tensor = torch.linalg.solve(system, wanted)
    return solution.T


def elimination_order(
    systems: Sequence[tuple[Tensor, Tensor, Tensor]], units: int
) -> tuple[int, ...]:
    """Units from the first to keep to the first to drop, by greedy backward elimination.

    Dropping inputs u of a weight that is refitted optimally afterwards costs
    tr(W[:, u] (H⁻¹[u, u])⁻¹ W[:, u]ᵀ), H the ridged moment; W and H⁻¹ are then updated exactly
    (optimal brain surgeon for groups; ZipLM, arXiv 2302.04089, section 3). The costs of several
    consumers are added, each as a share of the variance of its outputs.

    Args:
        systems: for each consumer its moment `[D, D]`, its weight `[O, D]`, and the inputs of
            each unit `[units, p]`.
        units: number of units.
    """
    states = [_State(*system) for system in systems]
    alive = torch.ones(units, dtype=torch.bool)
    dropped: list[int] = []
    while len(dropped) < units - 1:
        costs = torch.stack([state.costs() for state in states]).sum(0)
        costs[~alive] = torch.inf
        # Each update passes over the whole inverse, so wide layers drop several units at once.
        many = max(1, int(alive.sum()) // _LOOKS)
        cheapest = torch.argsort(costs, stable=True)[:many]
        alive[cheapest] = False
        dropped += cheapest.tolist()
        for state in states:
            state.drop(cheapest)
    last = [unit for unit in range(units) if alive[unit]]
    return (*last, *reversed(dropped))


class _State:
    """One consumer while its inputs are eliminated."""

    def __init__(self, moment: Tensor, weight: Tensor, places: Tensor) -> None:
        full = ridged(moment)
        self._inverse = torch.linalg.inv(full)
        self._weight = weight.double().clone()
        self._places = places
        self._scale = float(((self._weight @ full) * self._weight).sum().clamp_min(1e-30))

    def costs(self) -> Tensor:
        """Cost of dropping each unit, `[units]`."""
        p = self._places
        blocks = self._inverse[p[:, :, None], p[:, None, :]]
        weights = self._weight[:, p].permute(1, 2, 0)  # units, p, O
        solved: Tensor = torch.linalg.solve(blocks, weights)
        return (weights * solved).sum((1, 2)) / self._scale

    def drop(self, units: Tensor) -> None:
        """Takes the inputs of units out; the rest is optimal for what is left."""
        p = self._places[units].flatten()
        gain = torch.linalg.solve(self._inverse[p][:, p], self._inverse[p])
        self._weight -= self._weight[:, p] @ gain
        self._inverse -= self._inverse[:, p] @ gain
        # What rounding leaves of a dropped input must neither count nor be singular.
        self._weight[:, p] = 0
        self._inverse[p] = 0
        self._inverse[:, p] = 0
        self._inverse[p, p] = 1
