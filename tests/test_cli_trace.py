"""`compressor report RUN --trace`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from compressor.plain import encode
from compressor.search.journal import Journal
from compressor.search.notes import note_given_up
from compressor.trace.retrace import read_trace
from tests.test_trace import JOURNAL, SPACE, search


def call(*words: object) -> Result:
    environment = {"COLUMNS": "100"}
    return CliRunner().invoke(main, ["report", *map(str, words)], env=environment)


@pytest.mark.parametrize("kind", ["guided", "published"])
def test_the_summary_fits_a_terminal_and_names_everything(tmp_path: Path, kind: str) -> None:
    _, made = search(tmp_path, kind, evaluations=40)
    with Journal.open(tmp_path / JOURNAL, {}) as journal:
        note_given_up(journal, made[2][0], 192)
    result = call(tmp_path, "--trace")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"{kind} search, seed 1, at most madds ")
    assert "40 of 40 evaluations" in " ".join(lines[:3])
    trace = read_trace(tmp_path)
    assert trace.pick is not None
    for e in trace.scored:
        (line,) = [x for x in lines if x.split()[:1] == [str(e.number)] and "%" in x]
        assert " ".join(map(str, e.architecture)) in line
        assert ("taken" in line) == (e.number == trace.pick.evaluation)
        assert ("given up after 192" in line) == (e.number == 2)
        assert ("failed: " in line) == (e.score is None)
    for layer in SPACE.layers:
        assert layer.name in result.stdout
    assert f"Taken: {' '.join(map(str, trace.pick.architecture))}, evaluation" in result.stdout


@pytest.mark.parametrize("kind", ["guided", "published"])
def test_one_layer_is_shown_in_full(tmp_path: Path, kind: str) -> None:
    search(tmp_path, kind, evaluations=60)
    trace = read_trace(tmp_path)
    result = call(tmp_path, "--trace", "--layer", "conv3")
    assert result.exit_code == 0, result.output
    for option in trace.layers[3].options:
        assert option in result.stdout
    if kind == "published":
        visits = [visit for visit in trace.visits if visit.layer == 3]
        assert result.stdout.count("the row M_4 after it") == len(visits) >= 1
        for tried in visits[0].tried:
            assert " ".join(map(str, tried.prefix)) in result.stdout
        fates = {tried.fate for visit in visits for tried in visit.tried}
        assert "above a limit" in fates
        assert "dropped: above a limit whatever follows" in result.stdout
    else:
        assert trace.pick is not None
        assert result.stdout.count("the answer's prefix stands here") == bool(trace.pick.path)
        for bucket in trace.pick.rows[3]:
            assert " ".join(map(str, bucket.best)) in result.stdout


def test_json_holds_the_whole_trace(tmp_path: Path) -> None:
    search(tmp_path)
    assert json.loads(call(tmp_path, "--trace", "--json").stdout) == encode(read_trace(tmp_path))


def test_an_unfinished_search_says_so(tmp_path: Path) -> None:
    search(tmp_path, stop=9)
    result = call(tmp_path, "--trace")
    assert "9 of 24 evaluations; not finished" in " ".join(result.stdout.split())
    assert call(tmp_path, "--trace", "--layer", "conv0").exit_code == 0


def test_of_several_searches_one_is_chosen(tmp_path: Path) -> None:
    search(tmp_path, "published", evaluations=12)
    search(tmp_path, "published", evaluations=30)
    words = " ".join(call(tmp_path, "--trace", "--search", 1).stdout.split())
    assert "12 of 12 evaluations; search 1 of 2 in this run" in words
    assert "search 2 of 2" in " ".join(call(tmp_path, "--trace").stdout.split())


def test_wrong_use_is_explained(tmp_path: Path) -> None:
    search(tmp_path)
    for words, said in [
        (("--layer", "conv0"), "belong to --trace; add it"),
        (("--json",), "belong to --trace; add it"),
        (("--trace", "--json", "--layer", "conv0"), "--json holds all layers"),
        (("--trace", "--layer", "conv9"), "one of conv0, conv1"),
        (("--trace", "--search", "2"), "searches of this run are 1 to 1"),
    ]:
        result = call(tmp_path, *words)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
    assert "there is no" in call(tmp_path / "none", "--trace").stderr
