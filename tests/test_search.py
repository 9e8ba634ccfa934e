from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.cost import Limit
from compressor.errors import (
    BudgetError,
    InfeasibleError,
    RunError,
    SearchError,
)
from compressor.search.baselines import brute_force, random_search, regularised_evolution
from compressor.search.buckets import Members
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import Outcome
from compressor.search.reach import Reach
from compressor.search.settings import Strategy
from compressor.space import Architecture

STRATEGIES: tuple[Strategy, ...] = ("guided", "published")
Table = list[list[int]]


@dataclass
class Additive:
    """Cost: a sum of one entry for each layer."""

    table: Table
    unit: str = "madds"
    monotone: bool = True

    def __call__(self, architecture: Architecture) -> float:
        return sum(row[o] for row, o in zip(self.table, architecture, strict=True))


@dataclass
class Counted(Additive):
    """The same, and how often it was asked."""

    calls: int = 0

    def __call__(self, architecture: Architecture) -> float:
        self.calls += 1
        return super().__call__(architecture)


@dataclass
class Chain:
    """Multiply-adds of a chain of convolutions: products of neighbouring widths."""

    widths: list[list[int]]
    unit: str = "madds"
    monotone: bool = True

    def __call__(self, architecture: Architecture) -> float:
        chosen = [3, *(row[o] for row, o in zip(self.widths, architecture, strict=True)), 10]
        return sum(a * b for a, b in itertools.pairwise(chosen))


class Measured:
    """A cost that need not be monotone, and that counts its calls."""

    monotone = False

    def __init__(self, call: Callable[[Architecture], float], unit: str = "latency") -> None:
        self.unit = unit
        self.calls: list[Architecture] = []
        self._call = call

    def __call__(self, architecture: Architecture) -> float:
        self.calls.append(architecture)
        return self._call(architecture)


class Scorer:
    """Scores from a function, and remembers who was asked."""

    def __init__(self, call: Callable[[Architecture], Any]) -> None:
        self.asked: list[Architecture] = []
        self._call = call

    def __call__(self, architecture: Architecture) -> Any:
        self.asked.append(architecture)
        return self._call(architecture)


def _noise(architecture: Architecture) -> float:
    return random.Random(str(architecture)).random()  # noqa: S311


def _sizes(table: Table) -> list[int]:
    return [len(row) for row in table]


@st.composite
def _tables(draw: st.DrawFn, layers: int = 4, options: int = 4) -> Table:
    rows = st.lists(st.integers(0, 20), min_size=1, max_size=options).map(sorted)
    return draw(st.lists(rows, min_size=1, max_size=layers))


@st.composite
def _problems(draw: st.DrawFn) -> tuple[Table, Table, float]:
    costs = draw(_tables())
    scores = [[draw(st.integers(0, 50)) for _ in row] for row in costs]
    low, high = (sum(row[i] for row in costs) for i in (0, -1))
    return costs, scores, draw(st.integers(low, max(low, high)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=150, deadline=None)
@given(problem=_problems())
def test_equals_brute_force_where_scores_and_costs_add_up(
    strategy: Strategy, problem: tuple[Table, Table, float]
) -> None:
    costs, scores, high = problem
    arguments: dict[str, Any] = {
        "sizes": _sizes(costs),
        "limits": [Limit(Additive(costs), high)],
        "score": Additive(scores),
    }
    exact = SearchSettings(buckets=None, kept=1, strategy=strategy)
    ours = layer_nas(settings=exact, evaluations=10**9, **arguments).best
    best = brute_force(**arguments).best
    assert ours.score == best.score
    assert ours.costs["madds"] <= high


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=100, deadline=None)
@given(problem=_problems(), count=st.integers(1, 30), seed=st.integers(0, 3), data=st.data())
def test_never_above_a_limit_and_something_is_found_whenever_it_exists(
    strategy: Strategy,
    problem: tuple[Table, Table, float],
    count: int,
    seed: int,
    data: st.DataObject,
) -> None:
    costs, _, high = problem
    times = {a: data.draw(st.integers(1, 9)) for a in itertools.product(*map(range, _sizes(costs)))}
    latency = Measured(times.__getitem__)
    limits = [Limit(latency, 5), Limit(Additive(costs), high)]
    feasible = {a for a, t in times.items() if t <= 5 and Additive(costs)(a) <= high}
    scorer = Scorer(_noise)
    try:
        result = layer_nas(
            sizes=_sizes(costs),
            limits=limits,
            score=scorer,
            evaluations=count,
            seed=seed,
            settings=SearchSettings(strategy=strategy),
        )
    except InfeasibleError as error:
        assert not feasible
        assert "latency" in str(error)  # noqa: PT017
        assert not scorer.asked
        return
    assert result.best.architecture in feasible
    assert result.evaluations == len(scorer.asked) == len(set(scorer.asked)) <= count
    assert len(latency.calls) == len(set(latency.calls))  # measured once each


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("search", [layer_nas, random_search, regularised_evolution])
@settings(max_examples=60, deadline=None)
@given(problem=_problems(), count=st.integers(1, 20))
def test_fills_the_budget_whenever_some_network_does(
    search: Callable[..., Any],
    strategy: Strategy,
    problem: tuple[Table, Table, float],
    count: int,
) -> None:
    costs, _, high = problem
    cost = Additive(costs)
    best = search(
        sizes=_sizes(costs),
        limits=[Limit(cost, high)],
        score=_noise,
        evaluations=count,
        settings=SearchSettings(strategy=strategy),
    ).best
    exists = any(
        0.97 * high <= cost(a) <= high for a in itertools.product(*map(range, _sizes(costs)))
    )
    assert cost(best.architecture) <= high
    if exists and search is layer_nas:
        assert cost(best.architecture) >= 0.97 * high


# the worked example of the paper's review: options A-D of cost 1-4, target 8-9
_EXAMPLE = {
    "ADD": 0.30, "CDD": 0.45, "ACD": 0.27, "CAD": 0.40, "CBD": 0.42, "CDB": 0.40, "CDA": 0.37,
    "BDD": 0.35, "DDD": 0.50, "BCD": 0.33, "BBD": 0.32, "BCC": 0.32, "DDA": 0.37,
}  # fmt: skip


def _letters(architecture: Architecture) -> str:
    return "".join("ABCD"[option] for option in architecture)


@pytest.mark.parametrize("seed", range(5))
def test_worked_example_keeps_the_best_of_the_target(seed: int) -> None:
    scorer = Scorer(lambda a: _EXAMPLE[_letters(a)])
    result = layer_nas(
        sizes=[4, 4, 4],
        limits=[Limit(Additive([[1, 2, 3, 4]] * 3), 9)],
        score=scorer,
        evaluations=200,
        seed=seed,
        settings=SearchSettings(tightness=8 / 9, strategy="published"),
    )
    asked = {_letters(a) for a in scorer.asked}
    assert _letters(result.best.architecture) == "CBD"
    assert result.best.score == 0.42
    assert asked >= {"ADD", "BDD", "CDD", "DDD", "CBD", "CAD"}
    assert not asked & {"ABD", "BAD", "AAD", "AAA"}  # 7 at most: cannot reach the target
    assert {_letters(a) for a, _ in result.failed} == asked - set(_EXAMPLE)


def test_prefixes_that_cannot_get_below_the_limit_are_never_asked_for() -> None:
    scorer = Scorer(_noise)
    layer_nas(
        sizes=[4, 4, 4],
        limits=[Limit(Additive([[1, 2, 3, 4]] * 3), 6)],
        score=scorer,
        evaluations=500,
        settings=SearchSettings(strategy="published", tightness=0.5),
    )
    asked = {_letters(a) for a in scorer.asked}
    assert asked >= {"DDD", "DAD", "CBD"}
    assert not asked & {"DBD", "DCD", "CCD", "DDA", "DDB"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_budget_that_even_filling_misses_is_filled(
    strategy: Strategy,
) -> None:
    result = layer_nas(
        sizes=[2, 2],
        limits=[Limit(Additive([[0, 3], [0, 5]]), 5)],
        score=_noise,
        evaluations=1,
        settings=SearchSettings(strategy=strategy),
    )
    assert result.best.architecture == (0, 1)


def test_a_bucket_keeps_the_best_and_the_earlier_among_equals() -> None:
    members = Members(kept=2)
    for option, score in enumerate([0.1, 0.5, 0.3, 0.3, 0.5]):
        members.add("bucket", (option,), score)
    members.add("other", (9,), 0.4)
    assert [m.prefix for m in members] == [(1,), (4,), (9,)]
    members.add("bucket", (5,), 0.5)
    assert [m.prefix for m in members] == [(1,), (4,), (9,)]


_WIDTHS = [[w * s // 8 for s in range(1, 9)] for w in (16, 16, 32, 32, 64, 64, 128, 128, 64, 32)]


def _chain(share: float) -> dict[str, Any]:
    cost = Chain(_WIDTHS)
    whole = cost(tuple(7 for _ in _WIDTHS))
    return {
        "sizes": _sizes(_WIDTHS),
        "limits": [Limit(cost, share * whole)],
        "score": lambda a: sum(math.log(1 + o) * (1 + i % 3) for i, o in enumerate(a)),
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 2, 5, 9, 40, 200])
@pytest.mark.parametrize("share", [0.08, 0.25, 0.5, 0.9])
def test_fills_fine_grained_budgets_however_few_the_evaluations(
    share: float, count: int, strategy: Strategy
) -> None:
    result = layer_nas(
        **_chain(share), evaluations=count, settings=SearchSettings(strategy=strategy)
    )
    assert result.evaluations <= count
    limit = _chain(share)["limits"][0]
    assert 0.97 * limit.high <= result.best.costs["madds"] <= limit.high


def test_all_networks_of_the_guided_strategy_are_inside_the_limits() -> None:
    result = layer_nas(**_chain(0.5), evaluations=100)
    limit = _chain(0.5)["limits"][0]
    assert all(c.costs["madds"] <= limit.high for c in result.scored)
    assert result.evaluations == 100


def test_finds_better_networks_with_more_evaluations() -> None:
    one, many = (layer_nas(**_chain(0.4), evaluations=n).best.score for n in (1, 100))
    assert many > one


def test_rounds_reach_the_last_layer_when_evaluations_are_short() -> None:
    scorer = Scorer(_noise)
    layer_nas(**{**_chain(0.5), "score": scorer}, evaluations=60)
    assert len({a[-1] for a in scorer.asked}) > 3
    assert len({a[0] for a in scorer.asked}) > 1


def test_measured_costs_are_called_on_complete_networks_once() -> None:
    table = Chain(_WIDTHS)
    whole = table(tuple(7 for _ in _WIDTHS))
    latency = Measured(lambda a: table(a) / whole * (1 + 0.02 * _noise(a)))
    result = layer_nas(
        sizes=_sizes(_WIDTHS), limits=[Limit(latency, 0.5)], score=_noise, evaluations=40
    )
    assert 0.97 * 0.5 <= result.best.costs["latency"] <= 0.5
    assert all(c.costs["latency"] <= 0.5 for c in result.scored)
    assert len(latency.calls) == len(set(latency.calls))
    assert {len(a) for a in latency.calls} == {len(_WIDTHS)}
    assert len(latency.calls) < 6 * 40  # each is a measurement


def test_table_and_measured_limit_hold_together() -> None:
    table = Chain(_WIDTHS)
    whole = table(tuple(7 for _ in _WIDTHS))
    latency = Measured(lambda a: sum(a) + _noise(a))
    limits = [Limit(table, 0.6 * whole), Limit(latency, 40.0)]
    result = layer_nas(sizes=_sizes(_WIDTHS), limits=limits, score=_noise, evaluations=30)
    for candidate in result.scored:
        assert candidate.costs["madds"] <= 0.6 * whole
        assert candidate.costs["latency"] <= 40.0


def test_draws_in_networks_of_many_layers_cost_little() -> None:
    """Sums over many layers are all alike, so uniform draws would never be in the band."""
    cost = Counted([[1, 2, 3, 4]] * 60)
    reach = Reach([4] * 60, [Limit(cost, 100)], 0.97)
    rng = random.Random(0)  # noqa: S311 - reproducible draws
    drawn = [reach.draw(rng) for _ in range(3)]
    assert all(network is not None and 97 <= cost(network) <= 100 for network in drawn)
    assert len(set(drawn)) == 3
    cost.calls = 0
    reach.draw(rng)
    assert cost.calls < 100


def test_same_seed_same_result_with_any_executor() -> None:
    first = layer_nas(**_chain(0.5), seed=3)
    with ThreadPoolExecutor(3) as pool:
        second = layer_nas(**_chain(0.5), seed=3, executor=pool.map)
    other = layer_nas(**_chain(0.5), seed=4)
    assert first == second
    assert first.scored != other.scored


@pytest.mark.parametrize("noisy", [False, True])
def test_the_time_that_workers_take_changes_nothing(noisy: bool) -> None:
    """Later networks of a batch are done first."""
    arguments = {
        **_chain(0.5),
        "evaluations": 40,
        "settings": SearchSettings(batch=4, deterministic=not noisy),
    }
    plain = layer_nas(**arguments)
    finished: list[int] = []

    def executor(judge: Any, networks: Any) -> Any:
        items = list(networks)
        ready = [Event() for _ in items]

        def run(place: int) -> Outcome:
            if place + 1 < len(items):
                ready[place + 1].wait(60)
            outcome = judge(items[place])
            finished.append(place)
            ready[place].set()
            return outcome

        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(run, range(len(items))))

    assert layer_nas(**arguments, executor=executor) == plain
    assert finished != sorted(finished)


def test_the_batch_can_be_sent_to_other_processes() -> None:
    def executor(judge: Any, networks: Any) -> Any:
        return map(pickle.loads(pickle.dumps(judge)), networks)  # noqa: S301

    arguments = {**_chain(0.5), "score": _noise, "evaluations": 20}
    assert layer_nas(**arguments, executor=executor) == layer_nas(**arguments)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("prefix", [0, 1, 17, 59, 60])
def test_resume_replays_without_scoring_again(
    tmp_path: Path, prefix: int, strategy: Strategy
) -> None:
    def fragile(architecture: Architecture) -> float:
        if sum(architecture) % 7 == 0:
            raise ValueError("seven")
        return _noise(architecture)

    arguments = {
        **_chain(0.5),
        "evaluations": 60,
        "settings": SearchSettings(strategy=strategy),
    }
    outcomes: dict[Architecture, Outcome] = {}
    whole = layer_nas(**{**arguments, "score": fragile}, on_outcome=outcomes.__setitem__)
    with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
        for architecture, outcome in itertools.islice(outcomes.items(), prefix):
            journal.record(architecture, outcome, {})
        known = journal.outcomes()
    scorer = Scorer(fragile)
    fresh: dict[Architecture, Outcome] = {}
    resumed = layer_nas(**{**arguments, "score": scorer}, known=known, on_outcome=fresh.__setitem__)
    assert resumed == whole
    assert not set(scorer.asked) & set(known)
    assert list(fresh) == scorer.asked
    assert len(scorer.asked) == len(outcomes) - prefix


def test_outcomes_are_reported_one_by_one() -> None:
    events: list[str] = []

    def score(architecture: Architecture) -> float:
        events.append("score")
        return _noise(architecture)

    layer_nas(
        **{**_chain(0.5), "score": score},
        on_outcome=lambda _a, _o: events.append("outcome"),
        evaluations=30,
    )
    assert events == ["score", "outcome"] * 30


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "high", None, True, 1j])
def test_a_score_that_is_no_finite_number_is_a_failure(value: object) -> None:
    result = layer_nas(
        sizes=[4, 4],
        limits=[Limit(Additive([[1, 2, 3, 4]] * 2), 5)],
        score=lambda a: value if a[0] == 1 else 0.5,  # type: ignore[arg-type, return-value]
    )
    assert result.best.architecture[0] != 1
    assert result.failed
    assert all("finite number" in reason for _, reason in result.failed)


def test_all_failures_show_the_first_reason() -> None:
    def broken(architecture: Architecture) -> float:
        raise KeyError("labels")

    with pytest.raises(SearchError, match=r"KeyError: 'labels'"):
        layer_nas(**{**_chain(0.5), "score": broken}, evaluations=5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interruptions_pass_through(error: type[BaseException]) -> None:
    def stopped(architecture: Architecture) -> float:
        raise error

    with pytest.raises(error):
        layer_nas(**{**_chain(0.5), "score": stopped})


def test_a_journal_that_cannot_be_written_ends_the_search() -> None:
    def full(architecture: Architecture, outcome: Outcome) -> None:
        raise RunError("no space")

    with pytest.raises(RunError, match="no space"):
        layer_nas(**_chain(0.5), on_outcome=full)


@pytest.mark.parametrize("search", [layer_nas, random_search, regularised_evolution, brute_force])
def test_infeasible_budget_is_explained_before_any_evaluation(search: Callable[..., Any]) -> None:
    scorer = Scorer(_noise)
    with pytest.raises(InfeasibleError) as caught:
        search(
            sizes=[2, 2],
            limits=[Limit(Additive([[10**6, 10**7]] * 2), 1.5e6)],
            score=scorer,
            names=["stem", "head"],
        )
    message = str(caught.value)
    assert all(word in message for word in ("madds", "1.5M", "2M", "'stem'", "raise the limit"))
    assert not scorer.asked


def test_infeasible_measured_budget_names_the_cheapest_seen() -> None:
    latency = Measured(lambda a: 8.0 - sum(a))
    with pytest.raises(InfeasibleError, match=r"1 ms .* 2 ms"):
        layer_nas(sizes=[4, 4], limits=[Limit(latency, 1.0)], score=_noise)


def test_nearly_equal_values_are_shown_apart() -> None:
    with pytest.raises(InfeasibleError, match=r"limited to 99999999\.5 .* 100000000"):
        layer_nas(sizes=[1], limits=[Limit(Additive([[10**8]]), 99999999.5)], score=_noise)


def test_the_band_gives_way_where_it_is_empty() -> None:
    result = layer_nas(sizes=[2], limits=[Limit(Additive([[1, 100]]), 50)], score=_noise)
    assert result.best.architecture == (0,)


def test_a_limit_above_the_original_returns_networks() -> None:
    result = layer_nas(sizes=[2, 2], limits=[Limit(Additive([[1, 2]] * 2), 50)], score=sum)
    assert result.best.architecture == (1, 1)


def test_no_layers_scores_the_network_itself() -> None:
    for strategy in STRATEGIES:
        result = layer_nas(
            sizes=[],
            limits=[Limit(Additive([]), 1)],
            score=lambda _: 0.5,
            settings=SearchSettings(strategy=strategy),
        )
        assert result.best.architecture == ()


def test_two_tables_with_opposite_wishes() -> None:
    first = Additive([[0, 1, 2, 3]] * 4)
    second = Additive([[0, 3, 6, 9], [0, 1, 1, 1]] * 2, unit="params")
    result = layer_nas(
        sizes=[4] * 4,
        limits=[Limit(first, 7), Limit(second, 10)],
        score=lambda a: a[0] * 3 + a[1],
        evaluations=300,
    )
    for candidate in result.scored:
        assert candidate.costs["madds"] <= 7
        assert candidate.costs["params"] <= 10
    assert max(result.best.costs["madds"] / 7, result.best.costs["params"] / 10) >= 0.97


def test_frontier_holds_what_nothing_beats() -> None:
    result = layer_nas(**_chain(0.5), settings=SearchSettings(strategy="published"))
    costs = [c.costs["madds"] for c in result.frontier]
    scores = [c.score for c in result.frontier]
    assert costs == sorted(set(costs))
    assert scores == sorted(set(scores))
    for candidate in result.scored:
        assert any(
            f.score >= candidate.score and f.costs["madds"] <= candidate.costs["madds"]
            for f in result.frontier
        )


def test_explicit_allotment_is_used_as_the_batch() -> None:
    batches: list[int] = []

    def executor(judge: Any, networks: Any) -> Any:
        items = list(networks)
        batches.append(len(items))
        return map(judge, items)

    allotted = SearchSettings(strategy="published", parents=2, children=3)
    layer_nas(**_chain(0.5), settings=allotted, executor=executor)
    assert max(batches) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"kept": 0},
        {"buckets": 0},
        {"parents": 0},
        {"tightness": 1.5},
        {"strategy": "maybe"},
        {"batch": 0},
    ],
)
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(SearchError):
        SearchSettings(**change)


def test_the_form_of_the_problem_is_checked() -> None:
    with pytest.raises(BudgetError, match="limit"):
        layer_nas(sizes=[2], limits=[], score=_noise)
    limits = [Limit(Additive([[1]]), 1)]
    with pytest.raises(BudgetError, match="each unit"):
        layer_nas(sizes=[1], limits=limits * 2, score=_noise)
    with pytest.raises(SearchError, match="'stem'"):
        layer_nas(sizes=[0], limits=limits, score=_noise, names=["stem"])
    with pytest.raises(SearchError, match="at least one evaluation"):
        layer_nas(sizes=[1], limits=limits, score=_noise, evaluations=0)


def test_random_search_draws_distinct_networks_of_the_band() -> None:
    result = random_search(**_chain(0.5), evaluations=50)
    limit = _chain(0.5)["limits"][0]
    assert len({c.architecture for c in result.scored}) == 50
    assert all(0.97 <= c.costs["madds"] / limit.high <= 1 for c in result.scored)


def test_brute_force_scores_everything_inside() -> None:
    result = brute_force(sizes=[3, 3], limits=[Limit(Additive([[0, 1, 2]] * 2), 2)], score=sum)
    assert result.evaluations == 6
    assert result.best.score == 2


def test_evolution_scores_distinct_networks_of_the_band_and_improves() -> None:
    result = regularised_evolution(**_chain(0.5), evaluations=120)
    limit = _chain(0.5)["limits"][0]
    assert len({c.architecture for c in result.scored}) == 120
    assert all(0.97 <= c.costs["madds"] / limit.high <= 1 for c in result.scored)
    assert result.best.score > max(c.score for c in result.scored[:20])


def test_evolution_ends_where_nothing_is_left() -> None:
    result = regularised_evolution(
        sizes=[3, 3], limits=[Limit(Additive([[0, 1, 2]] * 2), 2)], score=sum, evaluations=100
    )
    assert result.best.score == 2
