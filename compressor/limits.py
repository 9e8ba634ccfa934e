"""From budgets to limits: costs of this network, and how much of each is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from compressor.budget import Budget, format_cost
from compressor.cost import CostModel, Limit
from compressor.errors import BudgetError
from compressor.space import Architecture

# A measured cost moves by a few per cent between measurements: aim off the ends, so that the
# final measurement stays within them, and a later one as well.
_MEASURED_MARGIN = 0.05
_GUARD = 0.02
_OF_RANGE = 0.25  # most of a range that the margin takes at each end


@runtime_checkable
class Referenced(Protocol):
    """A cost of which shares are of something else than what it says of the original network."""

    def reference(self) -> float:
        """What shares are of."""


@dataclass(frozen=True)
class ResolvedBudget:
    """A budget on a certain network.

    Attributes:
        budget: as it was asked for.
        cost: what it limits.
        original: cost of the original network, in the unit's base.
        high: the most that is allowed.
        low: the least that is allowed; None where there is none.
    """

    budget: Budget
    cost: CostModel
    original: float
    high: float
    low: float | None = None

    def limit(self) -> Limit:
        """What the search must stay within."""
        if self.cost.monotone:
            return Limit(self.cost, self.high, self.low)
        if self.low is None:
            return Limit(self.cost, self.high * (1 - _MEASURED_MARGIN))
        margin = min(_MEASURED_MARGIN * self.high, _OF_RANGE * (self.high - self.low))
        return Limit(self.cost, self.high - margin, self.low + margin)

    @property
    def guarded(self) -> float:
        """The most that a measured cost may be so that it is within the budget another day too."""
        width = math.inf if self.low is None else self.high - self.low
        return self.high - min(_GUARD * self.high, _OF_RANGE * width)

    def holds(self, value: float) -> bool:
        """Whether a network of this cost keeps what was asked for."""
        return Limit(self.cost, self.high, self.low).holds(value)


def resolve_budgets(
    budgets: Sequence[Budget], costs: Mapping[str, CostModel], original: Architecture
) -> tuple[ResolvedBudget, ...]:
    """Puts numbers on budgets.

    Raises:
        BudgetError: the original network already meets all of them.
    """
    resolved = []
    for budget in budgets:
        cost = costs[budget.unit]
        whole = cost.reference() if isinstance(cost, Referenced) else cost(original)
        high, low = budget.limit(whole), budget.least(whole)
        resolved.append(ResolvedBudget(budget, cost, cost(original), high, low))
    if all(r.holds(r.original) for r in resolved):
        used = [r.cost for r in resolved]
        have = ", ".join(
            f"{r.budget.unit} {format_cost(r.budget.unit, r.original)} "
            f"(budget {format_cost(r.budget.unit, r.high)})"
            for r in resolved
        )
        other = any(isinstance(c, Referenced) and c.reference() != c(original) for c in used)
        form = ", as it would be delivered," if other else ""
        raise BudgetError(
            f"the original network{form} already meets the budget: {have}; ask for less"
        )
    return tuple(resolved)
