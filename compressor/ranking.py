"""Which units of a channel group to keep first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compressor.coupling import Coupling, Role


def magnitude_order(
    tensors: Mapping[str, Tensor], couplings: Sequence[Coupling], units: int
) -> tuple[int, ...]:
    """Units from largest to smallest magnitude.

    The magnitude of a unit is the L1 norm of its slices, summed over every weight that produces
    or consumes it, each weight's norms divided by their mean so that large tensors do not drown
    small ones (the group norm of DepGraph, arXiv 2301.12900, section 3.3, with L1). Ties go to
    the earlier unit.

    Args:
        tensors: the network's state dict.
        couplings: what the units touch.
        units: number of units.
    """
    total = torch.zeros(units, dtype=torch.float64)
    for coupling in couplings:
        weight = tensors[coupling.tensor]
        if weight.dim() < 2 and coupling.role is not Role.PRODUCED:
            continue  # BatchNorm statistics say nothing about importance
        rest = [d for d in range(weight.dim()) if d != coupling.dim]
        norms = weight.detach().double().abs().sum(dim=rest).cpu() if rest else weight.abs().cpu()
        owner = _unit_of_position(coupling, units, norms.numel())
        known = owner >= 0
        sums = torch.zeros(units, dtype=torch.float64)
        sums.index_add_(0, owner[known], norms[known].double())
        mean = sums.mean()
        if mean > 0:
            total += sums / mean
    return tuple(int(u) for u in torch.argsort(total, descending=True, stable=True))


def _unit_of_position(coupling: Coupling, units: int, length: int) -> Tensor:
    owner = torch.full((length,), -1, dtype=torch.long)
    for run in coupling.index.runs:
        for unit in range(run.first, min(run.first + run.units, units)):
            start = run.offset + (unit - run.first) * run.step
            owner[start : start + run.length] = unit
    return owner
