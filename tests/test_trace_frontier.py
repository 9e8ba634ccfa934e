"""The trace of a search of several budgets: for which budget what was done, and each answer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from compressor.cost import Limit, madds_table, params_table
from compressor.plain import decode, encode
from compressor.search.frontier import layer_nas_frontier
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings
from compressor.search.notes import note_start, state_problem
from compressor.search.outcome import Outcome, SearchResult
from compressor.search.recall import recalled
from compressor.space import Architecture
from compressor.trace.retrace import read_trace
from compressor.trace.trace import Trace
from tests.test_trace import (
    HINTS,
    JOURNAL,
    NET,
    SPACE,
    Made,
    Score,
    Waves,
    order,
    probe,
    recorded,
)

SHARES = (0.7, 0.5, 0.35)
KINDS = {
    "plain": SearchSettings(),
    "probed": SearchSettings(),
    "noisy": SearchSettings(deterministic=False, batch=2),
}


def search(
    run: Path, kind: str = "plain", *, evaluations: int = 30, measured: bool = False,
    hints: Any = HINTS, stop: int | None = None,
) -> tuple[tuple[SearchResult, ...], Made]:  # fmt: skip
    """Searches as a run does, with its journal; perhaps killed after some evaluations."""
    run.mkdir(exist_ok=True)
    made: Made = []
    with Journal.open(run / JOURNAL, {}) as journal:
        table, params = madds_table(SPACE, NET.tensors, 0), params_table(SPACE, NET.tensors)
        whole = params(SPACE.original)
        other = Limit(Waves(journal), 14.0) if measured else Limit(params, 0.9 * whole, 0.1 * whole)
        budgets = [[Limit(table, share * table(SPACE.original)), other] for share in SHARES]
        known = journal.outcomes()

        def note(architecture: Architecture, outcome: Outcome) -> None:
            costs = {limit.cost.unit: float(limit.cost(architecture)) for limit in budgets[0]}
            journal.record(architecture, outcome, costs)
            made.append((architecture, outcome))
            if stop is not None and len(made) == stop:
                raise KeyboardInterrupt

        shared: dict[str, Any] = {"evaluations": evaluations, "seed": 1, "hints": hints}
        problem = state_problem(SPACE, budgets, KINDS[kind], probed=kind == "probed", **shared)
        note_start(journal, problem)
        asked = recalled(probe, journal) if kind == "probed" else None
        score = Score(sum(map(len, known.values())))
        try:
            results = layer_nas_frontier(
                sizes=SPACE.sizes, budgets=budgets, settings=KINDS[kind], score=score,
                known=known, on_outcome=note, probe=asked, **shared,
            )  # fmt: skip
        except KeyboardInterrupt:
            results = ()
    return results, made


@pytest.mark.parametrize("hints", [HINTS, None])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_tells_every_budgets_search_as_it_was(
    tmp_path: Path, kind: str, measured: bool, hints: Any
) -> None:
    results, made = search(tmp_path, kind, measured=measured, hints=hints)
    trace = read_trace(tmp_path)
    assert order(trace) == recorded(made)
    picked = [pick.architecture for pick in trace.picks]
    assert picked == [result.best.architecture for result in results]
    assert {pick.by for pick in trace.picks} == {"expected score" if kind == "noisy" else "score"}
    for place, (pick, share) in enumerate(zip(trace.picks, SHARES, strict=True)):
        assert place in trace.scored[pick.evaluation].keeps
        first = trace.budgets[place][0]
        assert (first.unit, first.low) == ("madds", None)
        assert first.high == pytest.approx(
            share * madds_table(SPACE, NET.tensors, 0)(SPACE.original)
        )
    assert {limits[1] for limits in trace.budgets} == {trace.budgets[0][1]}
    assert trace.budgets[0][1].measured == measured
    assert (trace.budgets[0][1].low is None) == measured
    assert any(e.source == "gains of neighbours" for e in trace.scored) <= (kind == "probed")
    assert decode(Trace, json.loads(json.dumps(encode(trace)))) == trace


def test_it_tells_for_which_budget_each_evaluation_was_made(tmp_path: Path) -> None:
    search(tmp_path, evaluations=40)
    trace = read_trace(tmp_path)
    assert {e.budget for e in trace.scored} == {0, 1, 2}
    for e in trace.scored:
        assert e.budget in e.keeps
        # what keeps one keeps the looser ones too
        assert e.keeps == tuple(range(len(e.keeps)))
        for place in range(3):
            limits = trace.budgets[place]
            kept = all((t.low or 0) <= e.costs[t.unit] <= t.high for t in limits)
            assert kept == (place in e.keeps)
        if e.place is not None:
            found = trace.recombinations[e.place]
            assert (found.budget, found.source) == (e.budget, e.source)
    # the searches take turns
    budgets = [e.budget for e in trace.scored if e.expected is not None]
    assert all(a != b for a, b in itertools.pairwise(budgets))


def test_a_pick_shows_the_recombination_that_brought_it(tmp_path: Path) -> None:
    search(tmp_path, evaluations=40)
    trace = read_trace(tmp_path)
    brought = 0
    for place, pick in enumerate(trace.picks):
        assert pick.recombination is not None
        if trace.scored[pick.evaluation].place == pick.recombination:
            brought += 1
            assert tuple(step.option for step in pick.path) == pick.architecture
        else:
            assert trace.recombinations[pick.recombination].budget == place
        assert len(pick.rows) == len(SPACE.layers)
    assert brought


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_frontier_is_told_as_far_as_it_came(tmp_path: Path, kind: str) -> None:
    _, whole = search(tmp_path / "whole", kind)
    for stop in (1, 3, 8, 20):
        run = tmp_path / str(stop)
        search(run, kind, stop=stop)
        trace = read_trace(run)
        assert order(trace) == recorded(whole[:stop])
        assert (trace.picks, trace.pick) == ((), None)
    search(run, kind)
    assert read_trace(run) == read_trace(tmp_path / "whole")


def call(*words: object) -> str:
    result = CliRunner().invoke(
        main, ["report", *map(str, words)], env={"COLUMNS": "100"}, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_text_names_the_budgets(tmp_path: Path) -> None:
    search(tmp_path, evaluations=40)
    trace = read_trace(tmp_path)
    text = call(tmp_path, "--trace")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    highs = [f"{limits[0].high / 1e3:.4g}K" for limits in trace.budgets]
    head = " ".join(text.split())
    assert f"for each of 3 budgets: at most madds {' / '.join(highs)}, params " in head
    assert "not finished" not in head
    for high, pick in zip(highs, trace.picks, strict=True):
        network = " ".join(map(str, pick.architecture))
        assert f"Taken for {high}: {network}, evaluation {pick.evaluation}," in head
    for e in trace.scored:
        (line,) = [x for x in lines if x.split()[:1] == [str(e.number)] and "%" in x]
        assert f"for {highs[e.budget]} " in line
        assert ("taken" in line) == any(pick.evaluation == e.number for pick in trace.picks)
    one = call(tmp_path, "--trace", "--layer", "conv3")
    shown = {(pick.recombination, pick.architecture) for pick in trace.picks if pick.path}
    assert one.count("the answer's prefix stands here") == len(shown)
    assert json.loads(call(tmp_path, "--trace", "--json")) == encode(trace)
