"""Which units of a channel group to keep first: five ways to tell, one signature.

Every ranking takes the views that one or several networks have of a group, and returns the units
from the first to keep to the first to drop, or None where it has nothing to go by; then `magnitude`
decides. Several networks are one architecture with weights of their own: the group has the same
units in all of them, and one order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from compressor.coupling import Coupling, Role
from compressor.errors import UsageError
from compressor.network.structure import named_tensors
from compressor.network.tracing import Fate
from compressor.refit.consumers import Consumer
from compressor.refit.elimination import Reader, elimination_order
from compressor.space import ChannelGroup

Order: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Evidence:
    """What rankings may look at.

    Attributes:
        model: the original network.
        fates: what each module's output goes through next.
        consumers: weights that can be refitted, with the moments of what they read.
        gates: for `taylor`, what each consumer's input channels contribute to the loss of each
            image, `[images, channels]` (`compressor.refit.gates`).
    """

    model: nn.Module
    fates: Mapping[str, Fate]
    consumers: Mapping[str, Consumer] = field(default_factory=dict)
    gates: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A group as one network has it.

    Attributes:
        group: with the couplings of that network.
        evidence: of that network.
        importance: what the network counts for, against others.
    """

    group: ChannelGroup
    evidence: Evidence
    importance: float = 1.0

    @property
    def units(self) -> int:
        """How many there are to order."""
        return len(self.group.order)


Ranking: TypeAlias = Callable[[Sequence[View]], "Order | None"]


def reconstruction(views: Sequence[View]) -> Order | None:
    """By what is lost once the readers are refitted to the rest, one unit at a time.

    The readers of all networks count, so that what one of them can make up for and another cannot
    is kept.
    """
    readers = [
        Reader(c.system, c.weight, c.places(coupling, view.units), view.importance)
        for view in views
        for c, coupling in _consumers(view)
    ]
    return elimination_order(readers, views[0].units) if readers else None


def activation(views: Sequence[View]) -> Order | None:
    """By weight times activation: ‖W[:, u]‖² · E[x_u²], as a share of each consumer's total."""
    return _by_shares(views, _energy)


def taylor(views: Sequence[View]) -> Order | None:
    """By the diagonal of the Fisher information of a gate on the unit.

    With g the gradient of the loss and a the activation, it is the mean over images of (Σ g·a)²,
    the sum over positions, channels of the unit and consumers (the squared first-order Taylor term
    of Molchanov et al., arXiv 1906.10771). The loss needs no labels; see `compressor.refit.gates`.
    """
    return _by_shares(views, _information)


def bn_scale(views: Sequence[View]) -> Order | None:
    """By |γ| of the BatchNorms that directly follow the weights that make the channels, summed."""
    return _by_shares(views, _scales)


def magnitude(views: Sequence[View]) -> Order:
    """By the L1 norms of the weights; see `magnitude_order`."""
    return _agreed([(view.importance, _norms(view)) for view in views])


def _energy(view: View) -> Tensor | None:
    units = view.units
    total = torch.zeros(units, dtype=torch.float64)
    found = list(_consumers(view))
    for consumer, coupling in found:
        energy = (consumer.weight.double().square().sum(1) * consumer.square).sum(0)
        share = energy / energy.sum().clamp_min(1e-30)
        total += share[consumer.places(coupling, units)].sum(1)
    return total if found else None


def _information(view: View) -> Tensor | None:
    group, evidence, units = view.group, view.evidence, view.units
    slopes: list[Tensor] = []
    for coupling in group.couplings:
        gates = evidence.gates.get(coupling.tensor.rpartition(".")[0])
        if coupling.role is Role.CONSUMED and gates is not None:
            size = evidence.model.get_parameter(coupling.tensor).shape[coupling.dim]
            # a unit of a grouped convolution is the same local channel of every group
            local = gates.reshape(len(gates), -1, size).sum(1)
            places = torch.tensor([coupling.index.positions([unit]) for unit in range(units)])
            slopes.append(local[:, places].sum(2))
    return torch.stack(slopes).sum(0).square().mean(0) if slopes else None


def _scales(view: View) -> Tensor | None:
    group, evidence = view.group, view.evidence
    makers = [c.tensor.rpartition(".")[0] for c in group.couplings if c.role is Role.PRODUCED]
    norms = {f"{evidence.fates[m].norm}.weight" for m in makers if m in evidence.fates}
    found = [c for c in group.couplings if c.tensor in norms]
    total = torch.zeros(len(group.order), dtype=torch.float64)
    for coupling in found:
        scales = evidence.model.get_parameter(coupling.tensor).detach().double().abs().cpu()
        total += _summed(scales, coupling, len(total))
    return total if found else None


def _norms(view: View) -> Tensor:
    return _magnitudes(named_tensors(view.evidence.model), view.group.couplings, view.units)


RANKINGS: Mapping[str, Ranking] = {
    "reconstruction": reconstruction,
    "magnitude": magnitude,
    "activation": activation,
    "taylor": taylor,
    "bn_scale": bn_scale,
}
NOTHING = {  # what it means where a ranking returns None
    "reconstruction": "none of its consumers can be refitted",
    "activation": "none of its consumers can be refitted",
    "taylor": "no gradient reaches its consumers",
    "bn_scale": "no BatchNorm directly follows what makes its channels",
}
MOMENTS = ("reconstruction", "activation")  # those that look at `Evidence.consumers`


def check_ranking(name: str) -> None:
    """Raises `UsageError`, naming the choices, unless there is such a ranking."""
    if name not in RANKINGS:
        raise UsageError(f"a ranking must be one of {', '.join(RANKINGS)}, but got {name!r}")


def magnitude_order(
    tensors: Mapping[str, Tensor], couplings: Sequence[Coupling], units: int
) -> Order:
    """Units from largest to smallest magnitude.

    The magnitude of a unit is the L1 norm of its slices, summed over every weight that produces
    or consumes it, each weight's norms divided by their mean so that large tensors do not drown
    small ones (the group norm of DepGraph, arXiv 2301.12900, section 3.3, with L1). Ties go to
    the earlier unit.

    Args:
        tensors: the network's parameters and buffers.
        couplings: what the units touch.
        units: number of units.
    """
    return _descending(_magnitudes(tensors, couplings, units))


def _magnitudes(tensors: Mapping[str, Tensor], couplings: Sequence[Coupling], units: int) -> Tensor:
    total = torch.zeros(units, dtype=torch.float64)
    for coupling in couplings:
        weight = tensors[coupling.tensor]
        if weight.dim() < 2 and coupling.role is not Role.PRODUCED:
            continue  # BatchNorm statistics say nothing about importance
        rest = [d for d in range(weight.dim()) if d != coupling.dim]
        norms = weight.detach().double().abs().sum(dim=rest).cpu() if rest else weight.abs().cpu()
        sums = _summed(norms, coupling, units)
        mean = sums.mean()
        if mean > 0:
            total += sums / mean
    return total


def _by_shares(views: Sequence[View], scores: Callable[[View], Tensor | None]) -> Order | None:
    """By the scores of those networks that have any."""
    told = [(view.importance, found) for view in views if (found := scores(view)) is not None]
    return _agreed(told) if told else None


def _agreed(told: Sequence[tuple[float, Tensor]]) -> Order:
    """By the units' scores in each network, as shares of their sum there, times its importance."""
    if len(told) == 1:
        return _descending(told[0][1].cpu())  # a share would round, and make equal what is not
    parts = [weight * scores.cpu() / scores.sum().cpu().clamp_min(1e-30) for weight, scores in told]
    return _descending(torch.stack(parts).sum(0))


def _consumers(view: View) -> Iterator[tuple[Consumer, Coupling]]:
    for coupling in view.group.couplings:
        consumer = view.evidence.consumers.get(coupling.tensor.rpartition(".")[0])
        if coupling.role is Role.CONSUMED and consumer is not None:
            yield consumer, coupling


def _descending(scores: Tensor) -> Order:
    """Units from the highest score to the lowest; of equal ones the earlier first."""
    return tuple(int(u) for u in torch.argsort(scores, descending=True, stable=True))


def _summed(values: Tensor, coupling: Coupling, units: int) -> Tensor:
    """One value for each position along the coupling's dimension, summed by unit."""
    owner = torch.full((values.numel(),), -1, dtype=torch.long)
    for run in coupling.index.runs:
        for unit in range(run.first, min(run.first + run.units, units)):
            start = run.offset + (unit - run.first) * run.step
            owner[start : start + run.length] = unit
    known = owner >= 0
    sums = torch.zeros(units, dtype=torch.float64)
    return sums.index_add_(0, owner[known], values[known].double())
