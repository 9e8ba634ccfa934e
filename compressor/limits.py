"""From budgets to limits: costs of this network, and how much of each is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.budget import Budget, format_cost
from compressor.cost import CostModel, Limit
from compressor.errors import BudgetError
from compressor.space import Architecture

# A measured cost moves by a few per cent between measurements: aim below the limit, so that the
# final measurement stays within it.
_MEASURED_MARGIN = 0.97


@dataclass(frozen=True)
class ResolvedBudget:
    """A budget on a certain network.

    Attributes:
        budget: as it was asked for.
        cost: what it limits.
        original: cost of the original network, in the unit's base.
        high: the most that is allowed.
    """

    budget: Budget
    cost: CostModel
    original: float
    high: float

    def limit(self) -> Limit:
        """What the search must stay within."""
        margin = 1.0 if self.cost.monotone else _MEASURED_MARGIN
        return Limit(self.cost, self.high * margin)


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
        whole = cost(original)
        resolved.append(ResolvedBudget(budget, cost, whole, budget.limit(whole)))
    if all(r.original <= r.high for r in resolved):
        have = ", ".join(
            f"{r.budget.unit} {format_cost(r.budget.unit, r.original)} "
            f"(budget {format_cost(r.budget.unit, r.high)})"
            for r in resolved
        )
        raise BudgetError(f"the original network already meets the budget: {have}; ask for less")
    return tuple(resolved)
