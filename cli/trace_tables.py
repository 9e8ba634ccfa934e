"""The trace of a search for a terminal. Names come from the user's network: text, never markup."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cli.tables import RIGHT, number_text, options_text, text_table
from cli.visit_tables import visits_of, visits_table
from compressor.budget import format_cost
from compressor.errors import UsageError
from compressor.trace.rows import Step
from compressor.trace.trace import Evaluation, Pick, Trace, TracedLimit


def trace_parts(trace: Trace, layer: str | None = None) -> Iterator[RenderableType]:
    """All layers in summary, or one in full.

    Raises:
        UsageError: there is no such layer.
    """
    yield Text(_head(trace))
    if layer is None:
        yield from _summary(trace)
        return
    names = [named.name for named in trace.layers]
    if layer not in names:
        raise UsageError(f"--layer takes one of {', '.join(names)}, but got {layer!r}")
    place = names.index(layer)
    yield _options(trace, place)
    yield from visits_of(trace, place)
    yield from _rows_of(trace, place)


def _head(trace: Trace) -> str:
    several = f"for each of {len(trace.budgets)} budgets: " * (len(trace.budgets) > 1)
    limits = ", ".join(_limit(column) for column in zip(*trace.budgets, strict=True))
    parts = [
        f"{trace.settings.strategy} search, seed {trace.seed}, {several}{limits}",
        f"{len(trace.scored)} of {trace.evaluations} evaluations",
    ]
    if trace.searches > 1:
        parts.append(f"search {trace.search} of {trace.searches} in this run")
    if len(trace.picks) < len(trace.budgets):
        parts.append("not finished")
    return "; ".join(parts)


def _limit(each: Sequence[TracedLimit]) -> str:
    """One limit as it is in each budget."""
    unit, low = each[0].unit, each[0].low
    highs = " / ".join(dict.fromkeys(format_cost(unit, limit.high) for limit in each))
    return (
        f"at most {unit} {highs}" if low is None else f"{unit} {format_cost(unit, low)} to {highs}"
    )


def _for(trace: Trace, places: Sequence[int]) -> str:
    """Which budgets are meant; empty where there is only one."""
    if len(trace.budgets) == 1:
        return ""
    firsts = [trace.budgets[place][0] for place in places]
    return " for " + ", ".join(format_cost(limit.unit, limit.high) for limit in firsts)


def _summary(trace: Trace) -> Iterator[RenderableType]:
    yield _evaluations(trace)
    sources = Counter(e.source for e in trace.scored)
    yield Text("From: " + ", ".join(f"{source} {n}" for source, n in sources.items()))
    yield from _foresight(trace.scored)
    if trace.visits:
        yield visits_table(trace)
    for place, path in _told(trace):
        if path is not None:
            yield path
        yield _pick(trace, place)


def _evaluations(trace: Trace) -> Table:
    table = text_table(
        "#", ("From", "left"), ("Expected", RIGHT), ("Score", RIGHT), ("Limit", RIGHT),
        ("Options", "left"), ("Note", "left"),
    )  # fmt: skip
    best: dict[int, float] = {}  # of each budget
    for e in trace.scored:
        score = -math.inf if e.score is None else e.score
        ahead = [place for place in e.keeps if score > best.get(place, -math.inf)]
        best |= dict.fromkeys(ahead, score)
        expected = "–" if e.expected is None else f"{e.expected:.4g} ± {e.deviation:.2g}"
        table.add_row(
            str(e.number), _source(trace, e), expected, number_text(e.score), _filling(trace, e),
            options_text(e.architecture), Text(_note(trace, e, ahead)),
        )  # fmt: skip
    return table


def _source(trace: Trace, e: Evaluation) -> Text:
    if e.source == "layer" and e.place is not None:
        visit = trace.visits[e.place]
        return Text(f"round {visit.round + 1}, {trace.layers[visit.layer].name}")
    return Text(e.source + _for(trace, [e.budget]))


def _filling(trace: Trace, e: Evaluation) -> str:
    """The largest share that the network takes of a limit that it was made for."""
    shares = [e.costs[t.unit] / t.high for t in trace.budgets[e.budget] if t.high > 0]
    return f"{max(shares):.1%}" if shares else "–"


def _note(trace: Trace, e: Evaluation, ahead: Sequence[int]) -> str:
    taken = [place for place, pick in enumerate(trace.picks) if pick.evaluation == e.number]
    parts = [
        f"taken{_for(trace, taken)}" if taken else "",
        f"best so far{_for(trace, ahead)}" if ahead else "",
        _outside(trace, e),
        "" if e.images is None else f"given up after {e.images} images",
        "" if not e.repeat else f"for the {e.repeat + 1}. time",
        f"failed: {e.reason}" if e.reason else "",
    ]
    return ", ".join(filter(None, parts))


def _outside(trace: Trace, e: Evaluation) -> str:
    if e.budget in e.keeps:
        return ""
    above = any(e.costs[t.unit] > t.high for t in trace.budgets[e.budget])
    return "above a limit" if above else "below a limit"


def _foresight(scored: Sequence[Evaluation]) -> Iterator[Text]:
    """How well the model knew the scores before they were there."""
    known = [
        (abs(e.score - e.expected), e.deviation)
        for e in scored
        if e.score is not None and e.expected is not None and e.deviation is not None
    ]
    if known:
        off = sum(miss for miss, _ in known) / len(known)
        within = sum(miss <= 2 * deviation for miss, deviation in known) / len(known)
        yield Text(
            f"Expected scores were off by {off:.3g} on average; {within:.0%} of the scores were "
            "within two standard deviations"
        )


def _told(trace: Trace) -> Iterator[tuple[int, Table | None]]:
    """Each budget that has an answer, and the path of the answer where it was not told yet."""
    told: list[tuple[Step, ...]] = [()]
    for place, pick in enumerate(trace.picks):
        yield place, None if pick.path in told else _path(trace, pick)
        told.append(pick.path)


def _pick(trace: Trace, place: int) -> Text:
    pick = trace.picks[place]
    second = "" if pick.second is None else f"; the next best, {options_text(pick.second)}, has "
    equal = pick.second_merit == pick.merit
    second += (
        (f"{number_text(pick.second_merit)}" + ", and costs no less" * equal) if second else ""
    )
    return Text(
        f"Taken{_for(trace, [place])}: {options_text(pick.architecture)}, evaluation "
        f"{pick.evaluation}, for the best {pick.by} of {pick.among} networks that could be the "
        f"answer, {number_text(pick.merit)}{second}"
    )


def _path(trace: Trace, pick: Pick) -> Table:
    assert pick.recombination is not None  # noqa: S101 - there is a path
    found = trace.recombinations[pick.recombination]
    table = text_table(
        "Layer", ("Taken", "left"), ("Tried", RIGHT), ("Too dear", RIGHT), ("Beaten", RIGHT),
        ("Kept", RIGHT), ("Buckets", RIGHT), ("Stands in", RIGHT), ("Met there", RIGHT),
        ("Ahead by", RIGHT),
    )  # fmt: skip
    for layer, counts, step in zip(trace.layers, found.layers, pick.path, strict=True):
        ahead = "–" if step.rival_value is None else f"{step.value - step.rival_value:.3g}"
        table.add_row(
            Text(layer.name), Text(layer.options[step.option]),
            *map(str, (counts.tried, counts.beyond, counts.beaten, counts.kept, counts.buckets)),
            str(step.bucket), str(step.rivals), ahead,
        )  # fmt: skip
    brought = trace.scored[pick.evaluation].place == pick.recombination
    made_for = _for(trace, [found.budget])
    table.title = f"Recombination of {found.source}{made_for} before evaluation {found.before}" + (
        ", which brought the answer" if brought else ", the last one"
    )
    table.caption = (
        f"{found.proposed} networks came out, {found.inside} of them inside the limits and the "
        f"band, {found.new} new. Met there: prefixes of the same bucket with the same last option"
    )
    return table


def _options(trace: Trace, place: int) -> Table:
    """What was scored and taken of one layer."""
    layer = trace.layers[place]
    table = text_table(
        "Option", ("Choice", "left"), ("Scored", RIGHT), ("Mean", RIGHT), ("Best", RIGHT),
        ("Note", "left"),
    )  # fmt: skip
    for option, choice in enumerate(layer.options):
        mine = [e.score for e in trace.scored if e.architecture[place] == option]
        scores = [score for score in mine if score is not None]
        mean = sum(scores) / len(scores) if scores else None
        taken = [n for n, pick in enumerate(trace.picks) if pick.architecture[place] == option]
        table.add_row(
            str(option), Text(choice), str(len(mine)), number_text(mean),
            number_text(max(scores, default=None)),
            f"taken{_for(trace, taken)}" if taken else "",
        )  # fmt: skip
    table.title = f"Layer {layer.name}: scores of the networks with each option"
    return table


def _rows_of(trace: Trace, place: int) -> Iterator[RenderableType]:
    """The layer in every recombination, and its row in the one of the answer."""
    if trace.recombinations:
        yield _counts(trace, place)
    told: list[object] = []
    for pick in trace.picks:
        if pick.rows and (pick.recombination, pick.path) not in told:
            told.append((pick.recombination, pick.path))
            yield _row(pick, place)


def _row(pick: Pick, place: int) -> Table:
    table = text_table(
        "Bucket", ("Stood", RIGHT), ("Beaten", RIGHT), ("Kept", RIGHT), ("Best prefix", "left"),
        ("Expected to add", RIGHT), ("Note", "left"),
    )  # fmt: skip
    for row in pick.rows[place]:
        mine = bool(pick.path) and pick.path[place].bucket == row.number
        table.add_row(
            str(row.number), str(row.stood), str(row.stood - row.kept), str(row.kept),
            options_text(row.best), f"{row.value:.4g}", "the answer's prefix stands here" * mine,
        )  # fmt: skip
    table.title = f"The row M_{place + 1} of recombination {pick.recombination}"
    return table


def _counts(trace: Trace, place: int) -> Table:
    table = text_table(
        "Recombination", ("Before", RIGHT), ("Of", "left"), ("Tried", RIGHT),
        ("Too dear", RIGHT), ("Beaten", RIGHT), ("Kept", RIGHT), ("Buckets", RIGHT),
    )  # fmt: skip
    for number, found in enumerate(trace.recombinations):
        counts = found.layers[place]
        table.add_row(
            str(number), str(found.before), found.source + _for(trace, [found.budget]),
            *map(str, (counts.tried, counts.beyond, counts.beaten, counts.kept, counts.buckets)),
        )  # fmt: skip
    table.title = "Prefixes that end in this layer, in each recombination"
    return table
