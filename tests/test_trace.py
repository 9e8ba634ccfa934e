"""The trace of a search: made from the journal alone, and the same search as it was."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.cost import Limit, madds_table, params_table
from compressor.errors import RunError
from compressor.files import JOURNAL
from compressor.plain import decode, encode
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.notes import note_given_up, note_start, state_problem
from compressor.search.outcome import Outcome, SearchResult
from compressor.search.recall import recalled
from compressor.search.trend import Hints
from compressor.space import Architecture
from compressor.trace.retrace import read_trace
from compressor.trace.trace import Trace
from tests.test_cost import Net
from tests.test_steps import around

WIDTHS = [[2, 4, 6, 8], [4, 8, 12, 16], [4, 8, 12], [8, 12, 16], [4, 8, 12, 16]]
NET = Net(WIDTHS, [[1, 3], [3], [3], [3], [3]], 4)
SPACE = NET.space
HINTS = [[float(n - o) / (i + 1) for o in range(n)] for i, n in enumerate(SPACE.sizes)]
PUBLISHED = SearchSettings(strategy="published", buckets=8, kept=2)
KINDS = {
    "guided": SearchSettings(),
    "probed": SearchSettings(),
    "batches": SearchSettings(batch=3, buckets=30),
    "noisy": SearchSettings(deterministic=False, batch=2),
    "published": PUBLISHED,
    "ranged": SearchSettings(),
    "ranged published": PUBLISHED,
    "each cost": SearchSettings(strategy="published", buckets=None, kept=1, tightness=0.5),
}


class Waves:
    """A latency that is not monotone and, as a measurement, has no table."""

    unit = "latency"
    monotone = False

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, architecture: Architecture) -> float:
        found = 1.0 + sum(architecture) + 0.3 * np.sin(7 * sum(architecture))
        self._journal.record_cost(self.unit, architecture, float(found))
        return float(found)


class Score:
    """Options are worth more in earlier layers; noise by the number of the call; some fail."""

    def __init__(self, skip: int = 0) -> None:
        self._calls = skip

    def __call__(self, architecture: Architecture) -> float:
        self._calls += 1
        if sum(architecture) % 7 == 3:
            raise ValueError("no")
        return worth(architecture) + float(0.1 * np.sin(self._calls**2))


def worth(architecture: Architecture) -> float:
    """Without noise."""
    return float(sum(np.sqrt(o) / (i + 1) for i, o in enumerate(architecture)))


def probe(base: Architecture) -> Hints:
    """Neighbours by one step, as they are worth without noise."""
    return around(base, list(SPACE.sizes), worth)


Made = list[tuple[Architecture, Outcome]]


def search(
    run: Path,
    kind: str = "guided",
    *,
    evaluations: int = 24,
    hints: Sequence[Sequence[float]] | None = HINTS,
    measured: bool = False,
    stop: int | None = None,
    seed: int = 1,
) -> tuple[SearchResult | None, Made]:
    """Searches as a run does, keeping the journal; perhaps killed after some evaluations."""
    run.mkdir(exist_ok=True)
    made: Made = []
    with Journal.open(run / JOURNAL, {}) as journal:
        table, params = madds_table(SPACE, NET.tensors, 0), params_table(SPACE, NET.tensors)
        whole = table(SPACE.original)
        low = 0.42 * whole if kind.startswith("ranged") else None
        limits = [
            Limit(table, 0.5 * whole, low),
            Limit(params, 0.7 * params(SPACE.original)),
        ]
        if measured:
            limits[1] = Limit(Waves(journal), 8.0 if low is None else 12.0)
        known = journal.outcomes()

        def note(architecture: Architecture, outcome: Outcome) -> None:
            costs = {limit.cost.unit: float(limit.cost(architecture)) for limit in limits}
            journal.record(architecture, outcome, costs)
            made.append((architecture, outcome))
            if stop is not None and len(made) == stop:
                raise KeyboardInterrupt

        arguments: dict[str, Any] = {"evaluations": evaluations, "seed": seed, "hints": hints}
        probed = kind == "probed"
        note_start(journal, state_problem(SPACE, [limits], KINDS[kind], probed=probed, **arguments))
        skip = sum(map(len, known.values()))
        try:
            result = layer_nas(
                sizes=SPACE.sizes, limits=limits, settings=KINDS[kind], score=Score(skip),
                known=known, on_outcome=note,
                probe=recalled(probe, journal) if probed else None, **arguments,
            )  # fmt: skip
        except KeyboardInterrupt:
            return None, made
    return result, made


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("kept")
    search(run)
    return run


@pytest.fixture
def run(kept_run: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    return Path(shutil.copytree(kept_run, tmp_path / "run"))


def order(trace: Trace) -> list[tuple[Architecture, float | None, int]]:
    return [(e.architecture, e.score, e.repeat) for e in trace.scored]


def recorded(made: Made) -> list[tuple[Architecture, float | None, int]]:
    return [(a, outcome.score, outcome.repeat) for a, outcome in made]


@pytest.mark.parametrize("hints", [HINTS, None])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_tells_the_search_as_it_was(
    tmp_path: Path, kind: str, measured: bool, hints: list[list[float]] | None
) -> None:
    count = 14 if measured else 24  # each measurement is a transaction
    result, made = search(tmp_path, kind, measured=measured, hints=hints, evaluations=count)
    assert result is not None
    trace = read_trace(tmp_path)
    assert order(trace) == recorded(made)
    assert trace.pick is not None
    assert trace.pick.architecture == result.best.architecture
    assert (trace.pick.by == "score") == (kind != "noisy")
    taken = trace.scored[trace.pick.evaluation]
    assert taken.keeps == (0,)
    assert taken.costs == result.best.costs
    assert bool(trace.visits) == (trace.settings.strategy == "published")
    if trace.settings.strategy == "guided":
        assert {e.source for e in trace.scored} >= ({"hints"} if hints else {"even", "random"})
        assert any(e.source == "expected effects" for e in trace.scored)
        stepped = any(e.source == "gains of neighbours" for e in trace.scored)
        # right hints may leave no neighbour that gains
        assert stepped <= (kind == "probed")
        assert stepped or kind != "probed" or measured or hints is not None
    assert decode(Trace, json.loads(json.dumps(encode(trace)))) == trace


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_search_is_told_as_far_as_it_came(tmp_path: Path, kind: str) -> None:
    _, whole = search(tmp_path / "whole", kind)
    for stop in (1, 7, 16):
        run = tmp_path / str(stop)
        search(run, kind, stop=stop)
        trace = read_trace(run)
        assert order(trace) == recorded(whole[:stop])
        assert trace.pick is None
    search(run, kind)
    assert read_trace(run) == read_trace(tmp_path / "whole")


def test_nothing_is_written_and_torch_is_not_needed(run: Path) -> None:
    before = (run / JOURNAL).read_bytes()
    read_trace(run)
    assert (run / JOURNAL).read_bytes() == before
    assert [path.name for path in run.iterdir()] == [JOURNAL]


def test_repeats_are_told(tmp_path: Path) -> None:
    search(tmp_path, "noisy", evaluations=40)
    scored = read_trace(tmp_path).scored
    assert any(e.repeat for e in scored)
    assert all((e.source == "repeat") == (e.repeat > 0) for e in scored)


def test_a_run_that_goes_on_can_be_told(run: Path) -> None:
    with Journal.open(run / JOURNAL, {}) as journal:
        before = len(read_trace(run).scored)
        network = (0,) * len(SPACE.sizes)
        journal.record_cost("latency", network, 1.0)
        assert len(read_trace(run).scored) == before == 24


def test_what_was_expected_came_before_the_score(run: Path) -> None:
    scored = read_trace(run).scored
    first = [e for e in scored if e.expected is None]
    assert [e.number for e in first] == list(range(len(first)))
    assert {e.source for e in first} <= {"hints", "even", "random"}
    assert all(e.deviation is not None and e.deviation >= 0 for e in scored[len(first) :])


def test_candidates_that_were_given_up_are_told(tmp_path: Path) -> None:
    _, made = search(tmp_path)
    with Journal.open(tmp_path / JOURNAL, {}) as journal:
        note_given_up(journal, made[3][0], 128)
        note_given_up(journal, made[5][0], 256)
    images = [e.images for e in read_trace(tmp_path).scored]
    assert [(n, found) for n, found in enumerate(images) if found] == [(3, 128), (5, 256)]


def test_what_is_recombined_adds_up(run: Path) -> None:
    trace = read_trace(run)
    for found in trace.recombinations:
        assert found.proposed >= found.inside >= found.new
        before = 1
        for size, counts in zip(SPACE.sizes, found.layers, strict=True):
            assert counts.tried == before * size
            assert counts.tried == counts.beyond + counts.beaten + counts.kept
            assert counts.buckets <= counts.kept
            before = counts.kept
    for e in trace.scored:
        if e.place is not None:
            found = trace.recombinations[e.place]
            assert (found.source, found.new > 0) == (e.source, True)
            assert found.before <= e.number


def test_the_answers_row_is_that_of_the_recombination_that_brought_it(tmp_path: Path) -> None:
    search(tmp_path, evaluations=60)
    trace = read_trace(tmp_path)
    pick = trace.pick
    assert pick is not None
    assert pick.recombination is not None
    found = trace.recombinations[pick.recombination]
    assert tuple(step.option for step in pick.path) == pick.architecture
    for counts, step, row in zip(found.layers, pick.path, pick.rows, strict=True):
        assert sum(bucket.kept for bucket in row) == counts.kept
        assert sum(bucket.stood - bucket.kept for bucket in row) == counts.beaten
        assert len(row) == counts.buckets
        mine = next(bucket for bucket in row if bucket.number == step.bucket)
        assert step.value <= mine.value + 1e-9
        if trace.scored[pick.evaluation].place == pick.recombination:
            assert step.rival_value is None or step.value >= step.rival_value - 1e-9


@pytest.mark.parametrize("kind", ["published", "each cost"])
def test_rows_hold_the_best_of_each_bucket(tmp_path: Path, kind: str) -> None:
    search(tmp_path, kind, evaluations=120)
    trace = read_trace(tmp_path)
    kept = KINDS[kind].kept
    arrived: dict[int, dict[Any, list[tuple[float, int, Architecture]]]] = {}
    prefixes: list[Architecture] = []
    for visit in trace.visits:
        row = arrived.setdefault(visit.layer, {})
        for tried in visit.tried:
            assert len(tried.prefix) == visit.layer + 1
            prefixes.append(tried.prefix)
            assert (tried.score is not None) == (tried.fate in ("kept", "beaten"))
            if tried.score is not None:
                assert tried.evaluation is not None
                assert trace.scored[tried.evaluation].score == tried.score
                costs = tuple(trace.scored[tried.evaluation].costs.values())
                key = costs if tried.bucket is None else tried.bucket
                entry = (-tried.score, len(prefixes), tried.prefix)
                best = sorted([*row.get(key, []), entry])
                assert (tried.fate == "kept") == (entry in best[:kept])
                row[key] = best[:kept]
        assert [list(zip(s.members, s.scores, strict=True)) for s in visit.row] == [
            [(prefix, -loss) for loss, _, prefix in row[key]] for key in sorted(row)
        ]
    assert len(set(prefixes)) == len(prefixes)
    fates = {tried.fate for visit in trace.visits for tried in visit.tried}
    assert {"kept", "beaten", "above a limit", "failed"} <= fates


def test_prefixes_that_leave_are_named(tmp_path: Path) -> None:
    search(tmp_path, "published", evaluations=120)
    members: dict[int, set[Architecture]] = {}
    left = 0
    for visit in read_trace(tmp_path).visits:
        row = members.setdefault(visit.layer, set())
        for tried in visit.tried:
            row |= {tried.prefix} if tried.fate == "kept" else set()
            if tried.pushed_out is not None:
                row.remove(tried.pushed_out)
                left += 1
        assert row == {prefix for standing in visit.row for prefix in standing.members}
    assert left


def test_the_same_network_is_scored_once_and_said_to_be_known(tmp_path: Path) -> None:
    search(tmp_path, "published", evaluations=120)
    trace = read_trace(tmp_path)
    for number, visit in enumerate(trace.visits):
        for tried in visit.tried:
            if tried.evaluation is not None:
                assert tried.known == (trace.scored[tried.evaluation].place != number)
    assert any(tried.known for visit in trace.visits for tried in visit.tried)


def test_a_search_with_more_evaluations_goes_on_in_the_same_journal(tmp_path: Path) -> None:
    _, first = search(tmp_path, "published", evaluations=12)
    result, _ = search(tmp_path, "published", evaluations=60)
    assert result is not None
    trace = read_trace(tmp_path)
    assert (trace.search, trace.searches, len(trace.scored)) == (2, 2, result.evaluations)
    earlier = read_trace(tmp_path, 1)
    assert order(earlier) == recorded(first)
    assert earlier.pick is not None
    with pytest.raises(RunError, match="searches of this run are 1 to 2, but got 3"):
        read_trace(tmp_path, 3)


def _change(run: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(run / JOURNAL)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def _renote(run: Path, change: Any) -> None:
    with Journal.open(run / JOURNAL, {}) as journal:
        data = journal.get("searches")
        change(data["starts"][0], data["starts"][0]["problem"])
        journal.put("searches", data)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE evaluations SET score = score - 1 WHERE number = 8",
        "UPDATE evaluations SET number = 1000 WHERE number = 10",
        "DELETE FROM evaluations WHERE number = 9",
        "DELETE FROM evaluations WHERE number = 1",
        "UPDATE evaluations SET architecture = '[0, 0, 0, 0, 0]' WHERE number = 12",
        "INSERT INTO evaluations VALUES (99, '[9]', 1.0, '', 1.0, '{}', 0)",
    ],
)
def test_another_course_is_an_error(run: Path, statement: str) -> None:
    _change(run, statement)
    with pytest.raises(RunError, match=r"another course .* numpy .*the same versions"):
        read_trace(run)


@pytest.mark.parametrize("key", ["seed", "evaluations"])
def test_another_problem_is_another_course(run: Path, key: str) -> None:
    _renote(run, lambda _, problem: problem.update({key: 3}))
    with pytest.raises(RunError, match="another course"):
        read_trace(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda start, problem: start.update(known=-1),
        lambda start, problem: start.pop("problem"),
        lambda start, problem: problem.update(seed="x"),
        lambda start, problem: problem.update(evaluations=0),
        lambda start, problem: problem.update(layers=[]),
        lambda start, problem: problem["layers"].pop(),
        lambda start, problem: problem["layers"][0].update(options=[]),
        lambda start, problem: problem["hints"].pop(),
        lambda start, problem: problem["hints"][0].append(1.0),
        lambda start, problem: problem["hints"][0].__setitem__(0, float("nan")),
        lambda start, problem: problem["limits"][0].update(high=float("inf")),
        lambda start, problem: problem["limits"][0].update(high=1.0),
        lambda start, problem: problem["limits"][0].update(low=float("nan")),
        lambda start, problem: problem["limits"][0].update(low=10**9),
        lambda start, problem: problem.update(frontier=[float("inf"), 1e4]),
        lambda start, problem: problem.update(frontier=[1.0, 2.0]),
        lambda start, problem: problem.update(frontier=[1e4] * 25),
        lambda start, problem: problem.update(limits=[]),
        lambda start, problem: problem["limits"][1].update(unit="madds"),
        lambda start, problem: problem["limits"].append(problem["limits"][0]),
        lambda start, problem: problem["settings"].update(strategy="clever"),
        lambda start, problem: problem["settings"].update(batch=0),
        lambda start, problem: problem["settings"].update(buckets=10**9),
        lambda start, problem: problem["limits"][0]["table"]["products"][0].__setitem__(1, 99),
        lambda start, problem: problem["limits"][0]["table"]["products"][0].extend([0] * 6),
        lambda start, problem: problem["limits"][0]["table"]["sizes"].__setitem__(0, 2**70),
        lambda start, problem: problem["limits"][0]["table"]["cuts"][0][0].append([-1, 1]),
        lambda start, problem: problem["limits"][0]["table"]["cuts"][0][0].append([1]),
        lambda start, problem: problem["limits"][0]["table"]["cuts"].pop(),
        lambda start, problem: problem["limits"][0].update(table=7),
    ],
)
def test_foreign_notes_are_refused(run: Path, change: Any) -> None:
    _renote(run, change)
    with pytest.raises(RunError, match="foreign"):
        read_trace(run)


def test_foreign_notes_of_candidates_given_up_are_refused(run: Path) -> None:
    with Journal.open(run / JOURNAL, {}) as journal:
        journal.put("given up", {"networks": [{"architecture": "x", "images": 1}]})
    with pytest.raises(RunError, match="foreign"):
        read_trace(run)


def test_a_journal_without_notes_says_what_to_do(run: Path) -> None:
    _change(run, "DELETE FROM notes WHERE key = 'note:searches'")
    with pytest.raises(RunError, match="earlier version; run the same `compressor compress` again"):
        read_trace(run)
    search(run)  # scores nothing twice
    assert len(read_trace(run).scored) == 24


def test_a_folder_without_a_journal_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds journal\.sqlite, but there is no"):
        read_trace(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / JOURNAL).write_bytes(b"no journal")
    with pytest.raises(RunError):
        read_trace(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"")
    with pytest.raises(RunError, match="another program"):
        read_trace(tmp_path)


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
                       min_size=1, max_size=4), data=st.data())  # fmt: skip
def test_a_cost_table_survives_as_plain_values(
    widths: list[list[int]], data: st.DataObject
) -> None:
    net = Net([sorted(row) for row in widths], [[1, 3]] * len(widths), 3)
    table = madds_table(net.space, net.tensors, 7)
    text = json.dumps(encode(table.data))
    again = type(table)(decode(type(table.data), json.loads(text)))
    network = tuple(data.draw(st.integers(0, n - 1)) for n in net.space.sizes)
    assert again(network) == table(network) == net.count(network)[0] + 7
