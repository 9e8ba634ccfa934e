"""What a budget says, read once at the boundary. Knows no torch.

A budget is text: `madds=50%`, `madds=150M`, `params=2M`, `latency=4ms`, `latency=60%`, or a range
with both ends, `madds=40%..50%`, `latency=3ms..4ms`. Percentages are of the original network's own
cost. A frontier is several upper limits of one unit: `madds=90%,80%,70%`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
_FORM = re.compile(r"^\s*([a-z]+)\s*=(.*)$", re.DOTALL)
_AMOUNT = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*$")
_TO = ".."  # between the ends of a range
_EXAMPLES = "madds=50%, madds=150M, params=2M, latency=4ms"


@dataclass(frozen=True)
class Budget:
    """The most, or a range: in the unit's base, or as shares of the original's cost.

    Attributes:
        unit: a key of `UNITS`.
        amount: multiply-adds, parameters or milliseconds; a share in (0, 1) where `relative`.
        relative: whether `amount` and `low` are shares.
        low: the least, in the same form; None asks for no least.
    """

    unit: str
    amount: float
    relative: bool
    low: float | None = None

    def __str__(self) -> str:
        least = "" if self.low is None else f"{self._text(self.low)}{_TO}"
        return f"{self.unit}={least}{self._text(self.amount)}"

    @property
    def folder(self) -> str:
        """The budget as the name of a folder: `madds-90pct`, `latency-4-ms`."""
        text = re.sub(r"(\.[0-9]*?)0+%", r"\1%", str(self))
        return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "pct"))

    def limit(self, original: float) -> float:
        """The limit in the unit's base, for an original network of the given cost."""
        return self.amount * original if self.relative else self.amount

    def least(self, original: float) -> float | None:
        """The lower end of a range in the unit's base, None where there is none."""
        return self.low * original if self.relative and self.low is not None else self.low

    def _text(self, amount: float) -> str:
        if self.relative:
            return f"{amount:.4%}".replace(".0000%", "%")
        return format_cost(self.unit, amount)


def parse_budget(text: str) -> Budget:
    """Reads one budget.

    Raises:
        BudgetError: the text does not have the form, the unit is unknown, an amount is not
            between 0 and 100 % (exclusive: 100 % asks for nothing), or a range does not rise.
    """
    match = _FORM.match(text)
    ends = [_AMOUNT.match(part) for part in match[2].split(_TO)] if match else []
    amounts = [(end[1], end[2]) for end in ends if end]
    if not match or len(amounts) != len(ends) or len(ends) > 2:
        raise BudgetError(
            f"a budget has the form UNIT=AMOUNT or UNIT=LEAST{_TO}MOST ({_EXAMPLES}, "
            f"madds=40%{_TO}50%), but got {text!r}"
        )
    unit = match[1]
    if unit not in UNITS:
        raise BudgetError(f"a budget's unit must be one of {', '.join(UNITS)}, but got {unit!r}")
    values = [_amount(unit, *end, text) for end in amounts]
    if len({relative for _, relative in values}) > 1:
        raise BudgetError(
            f"both ends of a range are shares, or both are amounts of {unit}, but got {text!r}"
        )
    (high, relative), low = values[-1], values[0][0] if len(values) > 1 else None
    if low is not None and low >= high:
        raise BudgetError(f"a range goes from less to more, LEAST{_TO}MOST, but got {text!r}")
    return Budget(unit, high, relative, low)


def _amount(unit: str, number: str, suffix: str, text: str) -> tuple[float, bool]:
    """An amount in the unit's base or as a share, and whether it is a share."""
    amount = float(number)
    if suffix == "%":
        if not 0 < amount / 100 < 1:
            raise BudgetError(
                "a relative budget must be above 0 % and below 100 % of the original, "
                f"but got {text!r}; 50% asks for half"
            )
        return amount / 100, True
    scales = _SCALES[unit]
    if suffix not in scales:
        known = ", ".join(repr(s) for s in [*scales, "%"] if s)
        raise BudgetError(f"an amount of {unit} ends in one of {known}, but got {text!r}")
    amount *= scales[suffix]
    if not 0 < amount < math.inf:
        raise BudgetError(f"a budget must be above 0 and finite, but got {text!r}")
    return amount, False


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


def parse_frontier(texts: str | Iterable[str], others: Sequence[Budget] = ()) -> tuple[Budget, ...]:
    """Reads the budgets of a frontier, `UNIT=AMOUNT,AMOUNT,…`; one network is asked for each.

    Args:
        texts: one text, or several whose amounts are put together.
        others: budgets that every network of the frontier keeps besides.

    Raises:
        BudgetError: fewer than two amounts, an amount twice, a range, another unit, or a unit
            that `others` limit as well.
    """
    joined = texts if isinstance(texts, str) else ",".join(texts)
    unit = joined.partition("=")[0].strip()
    parts = [part for part in joined.split(",") if part.strip()]
    budgets = [parse_budget(p if "=" in p else f"{unit}={p}") for p in parts]
    names = [str(b) for b in budgets]
    if len({b.unit for b in budgets}) != 1 or len(set(names)) < max(2, len(names)):
        raise BudgetError(
            "a frontier takes at least two different amounts of one unit, for example "
            f"madds=90%,80%,70%, but got {joined!r}"
        )
    if any(b.low is not None for b in budgets):
        raise BudgetError(
            "a frontier takes upper limits, so that what keeps one keeps the larger ones too, but "
            f"got the range in {joined!r}; give its upper end alone"
        )
    if any(b.unit == unit for b in others):
        raise BudgetError(
            f"each unit takes one limit, but {unit} has a budget and a frontier; drop the budget"
        )
    return tuple(budgets)


def parse_goals(
    budgets: str | Iterable[str], frontier: str | Iterable[str] | None
) -> tuple[tuple[Budget, ...], tuple[Budget, ...]]:
    """Reads budgets and a frontier, of which one may be missing.

    Raises:
        BudgetError: see `parse_budgets` and `parse_frontier`.
    """
    if frontier is None:
        return parse_budgets(budgets), ()
    together = parse_budgets(budgets) if budgets else ()
    return together, parse_frontier(frontier, together)


def format_cost(unit: str, value: float) -> str:
    """A cost for people: `20.6M`, `1.25G`, `3.42 ms`."""
    if unit == "latency":
        return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:g}"
