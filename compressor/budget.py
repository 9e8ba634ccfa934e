"""What a budget says, read once at the boundary. Knows no torch.

A budget is text: `madds=50%`, `madds=150M`, `params=2M`, `latency=4ms`, `latency=60%`.
Percentages are of the original network's own cost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compressor.errors import BudgetError

UNITS: Mapping[str, str] = {
    "madds": "multiply-adds of one input",
    "params": "parameters",
    "latency": "milliseconds of one ONNX Runtime call",
}
_SCALES: Mapping[str, Mapping[str, float]] = {
    "madds": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
_FORM = re.compile(r"^\s*([a-z]+)\s*=\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*$")
_EXAMPLES = "madds=50%, madds=150M, params=2M, latency=4ms"


@dataclass(frozen=True)
class Budget:
    """One upper limit: `amount` in the unit's base, or as a share of the original's cost.

    Attributes:
        unit: a key of `UNITS`.
        amount: multiply-adds, parameters or milliseconds; a share in (0, 1) where `relative`.
        relative: whether `amount` is a share.
    """

    unit: str
    amount: float
    relative: bool

    def __str__(self) -> str:
        if self.relative:
            return f"{self.unit}={self.amount:.4%}".replace(".0000%", "%")
        return f"{self.unit}={format_cost(self.unit, self.amount)}"

    def limit(self, original: float) -> float:
        """The limit in the unit's base, for an original network of the given cost."""
        return self.amount * original if self.relative else self.amount


def parse_budget(text: str) -> Budget:
    """Reads one budget.

    Raises:
        BudgetError: the text does not have the form, the unit is unknown, or the amount is not
            between 0 and 100 % (exclusive: 100 % asks for nothing).
    """
    match = _FORM.match(text)
    if not match:
        raise BudgetError(f"a budget has the form UNIT=AMOUNT ({_EXAMPLES}), but got {text!r}")
    unit, number, suffix = match.groups()
    if unit not in UNITS:
        raise BudgetError(f"a budget's unit must be one of {', '.join(UNITS)}, but got {unit!r}")
    amount = float(number)
    if suffix == "%":
        if not 0 < amount / 100 < 1:
            raise BudgetError(
                "a relative budget must be above 0 % and below 100 % of the original, "
                f"but got {text!r}; 50% asks for half"
            )
        return Budget(unit, amount / 100, relative=True)
    scales = _SCALES[unit]
    if suffix not in scales:
        known = ", ".join(repr(s) for s in [*scales, "%"] if s)
        raise BudgetError(f"an amount of {unit} ends in one of {known}, but got {text!r}")
    amount *= scales[suffix]
    if not 0 < amount < math.inf:
        raise BudgetError(f"a budget must be above 0 and finite, but got {text!r}")
    return Budget(unit, amount, relative=False)


def parse_budgets(texts: str | Iterable[str]) -> tuple[Budget, ...]:
    """Reads budgets that hold together: a comma-separated text, or several texts.

    Raises:
        BudgetError: none was given, one cannot be read, or a unit was given twice.
    """
    parts = [texts] if isinstance(texts, str) else list(texts)
    budgets = [parse_budget(p) for part in parts for p in str(part).split(",") if p.strip()]
    if not budgets:
        raise BudgetError(
            f"at least one budget is needed, for example {_EXAMPLES.split(',', maxsplit=1)[0]}"
        )
    seen: dict[str, Budget] = {}
    for budget in budgets:
        if budget.unit in seen:
            raise BudgetError(
                f"each unit takes one limit, but got both {seen[budget.unit]} and {budget}; "
                "give the smaller one alone"
            )
        seen[budget.unit] = budget
    return tuple(budgets)


def format_cost(unit: str, value: float) -> str:
    """A cost for people: `20.6M`, `1.25G`, `3.42 ms`."""
    if unit == "latency":
        return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:g}"
