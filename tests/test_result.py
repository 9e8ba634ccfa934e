"""The run summary: a file that reads back as it was written, or says what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.device.profile import NodeTime, Profile
from compressor.errors import RunError
from compressor.files import write_text
from compressor.plain import decode, encode
from compressor.report.multitask import MultitaskSummary
from compressor.report.overview import Overview
from compressor.report.record import Record
from compressor.report.result import (
    BudgetRow,
    Figures,
    FrontierPoint,
    LayerRow,
    RunSummary,
    ScoredRow,
    layer_rows,
)
from compressor.space import Choice, Frozen, SearchLayer, SearchSpace


def make_summary(layers: int = 3) -> RunSummary:
    """A plausible run with the given number of search layers."""
    widths = tuple(
        LayerRow(f"features.{i}", Choice(16, 5), Choice(8, 3), (f"features.{i}", "head"), 1000)
        for i in range(layers)
    )
    return RunSummary(
        base=Figures(40_600_000, 270_000, 0.9173, 1.51, 1_100_000),
        best=Figures(20_200_000, 140_000, 0.9012, 0.92, 600_000),
        architecture=(0,) * layers,
        choices={row.name: str(row.chosen) for row in widths},
        widths=widths,
        budgets=(BudgetRow("madds", "madds=50%", 20_300_000, 20_200_000),),
        evaluations=4,
        failed=1,
        seconds=61.5,
        stages={"search": 50.25, "export": 11.0},
        frozen=(Frozen("fc", "the outputs of the network"),),
        frontier=(
            FrontierPoint((0, 0, 0), 12_000_000, 90_000, 0.81),
            FrontierPoint((0, 1, 0), 20_200_000, 140_000, 0.9012, 0.92),
        ),
        scored=(
            ScoredRow(0, 12e6, 0.81),
            ScoredRow(1, 19e6, None),
            ScoredRow(2, 20.2e6, 0.9012),
            ScoredRow(3, 30e6, 0.91),
        ),
        settings={
            "seed": 0,
            "finetune": 2,
            "target": "net.py",
            "lr": 0.1,
            "x": None,
            "quick": True,
        },
        versions={"torch": "2.13"},
        machine={"cpu": "some", "threads": 1},
        profiles={
            "original": Profile((NodeTime("relu_nchwc", "Conv 3x3", "features.0", 1, 0.5),), 20),
            "compressed": Profile((NodeTime("relu_nchwc", "Conv 3x3", "features.0", 1, 0.25),), 20),
        },
        command="compressor compress net.py --budget madds=50% --out run",
    )


def test_reads_back_as_written(tmp_path: Path) -> None:
    summary = make_summary()
    path = summary.write(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "result.json"
    assert RunSummary.read(path.parent) == summary
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_documented_keys_are_the_keys_of_the_file() -> None:
    text = (Path(__file__).parents[1] / "docs" / "result.md").read_text()
    data = make_summary().to_json()
    assert next(iter(data)) == "schema"
    for key in [*data, *data["base"], *data["widths"][0], *data["frontier"][0], *data["scored"][0]]:
        assert f"`{key}`" in text


def test_a_number_that_was_not_measured_is_null(tmp_path: Path) -> None:
    summary = replace(make_summary(), best=Figures(1, 1, float("nan"), float("inf")))
    best = json.loads(summary.write(tmp_path).read_text())["best"]
    assert best == {
        "madds": 1, "params": 1, "score": None, "latency_ms": None, "file_bytes": None,
    }  # fmt: skip


def test_unknown_keys_are_passed_over() -> None:
    data = make_summary().to_json()
    data["later"] = {"more": 1}
    data["base"]["later"] = 2
    assert RunSummary.from_json(data) == make_summary()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 1 is needed, but got 2"),
        ({"schema": None}, "but got None"),
        ({"base": {"madds": "many", "params": 1}}, "'base.madds' must be of type int"),
        ({"base": {"params": 1}}, "'base.madds' is missing"),
        ({"evaluations": True}, "'evaluations' must be of type int, but got True"),
        ({"architecture": [0, 1.5]}, r"'architecture\[1\]' must be of type int"),
        ({"settings": {"seed": {}}}, "'settings.seed' must be"),
        ({"widths": "all" * 100}, "'widths' must be of type list"),
        (
            {"budgets": [{"unit": "joules", "requested": "", "limit": 1.0, "reached": 1.0}]},
            "a budget is of madds, params, latency, but got",
        ),
    ],
)
def test_another_form_is_refused_by_name(change: dict[str, object], said: str) -> None:
    with pytest.raises(RunError, match=said):
        RunSummary.from_json({**make_summary().to_json(), **change})


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is none in .*compressor compress"):
        RunSummary.read(tmp_path / "nowhere")
    (tmp_path / "result.json").write_text("{half")
    with pytest.raises(RunError, match="cannot be read"):
        RunSummary.read(tmp_path)
    (tmp_path / "result.json").write_text('{"answer": 42}')
    with pytest.raises(RunError, match="is not a result of this program"):
        RunSummary.read(tmp_path)
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="cannot be read"):
        RunSummary.read(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def full(self: Path, text: str, encoding: str) -> int:
        with self.open("w") as file:
            file.write(text[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"a\.txt' cannot be written: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        make_summary().write(tmp_path / "file" / "run")


def test_layer_rows_stand_beside_the_original() -> None:
    layer = SearchLayer("conv", ("conv", "bn"), (Choice(8, 3), Choice(8, 5), Choice(16, 5)))
    (row,) = layer_rows(SearchSpace((layer,)), (1,), (900.0,))
    assert (str(row.original), str(row.chosen), row.madds) == ("16 ch, k5", "8 ch, k5", 900)
    assert layer_rows(SearchSpace((layer,)), (1,))[0].madds is None


def test_a_budget_knows_whether_it_is_met() -> None:
    assert BudgetRow("params", "params=2M", 2e6, 2e6).met
    assert not BudgetRow("params", "params=2M", 2e6, 2e6 + 1).met
    assert BudgetRow("latency", "latency=2ms", 2.0, 1.9, upper=2.0).met
    assert not BudgetRow("latency", "latency=2ms", 2.0, 1.9, upper=2.1).met


@given(
    st.builds(
        Figures,
        st.integers(0, 2**63 - 1),
        st.integers(0, 2**63 - 1),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.floats(0, 1e9),
        st.none() | st.integers(0, 2**63 - 1),
    )
)
def test_encoding_loses_nothing(figures: Figures) -> None:
    assert decode(Figures, json.loads(json.dumps(encode(figures)))) == figures


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"seconds": NaN}', "NaN is no number"),
        ('{"seconds": -Infinity}', "-Infinity is no number"),
        ('{"seconds": 1e400}', "too large a number"),
        ('{"evaluations": 1' + "0" * 400 + "}", "at most 1e\\+18"),
        ('{"command": "\\ud800"}', "surrogates"),
        ("[" * 100_000, "recursion|nested|Expecting"),
        ('{"schema": 1', "Expecting"),
    ],
)
def test_what_no_page_could_show_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunError, match=said):
        RunSummary.read(tmp_path)


@pytest.mark.parametrize("record", [RunSummary, Overview, MultitaskSummary])
def test_a_file_that_is_missing_is_told_with_the_command_that_writes_it(
    tmp_path: Path, record: type[Record]
) -> None:
    with pytest.raises(RunError, match=r"there is none in .*`compressor compress.*` writes it"):
        record.read(tmp_path)


@pytest.mark.parametrize("record", [RunSummary, Overview, MultitaskSummary])
def test_a_file_of_another_schema_is_refused(tmp_path: Path, record: type[Record]) -> None:
    (tmp_path / record.form.file).write_text('{"schema": 99}')
    with pytest.raises(RunError, match=r"schema 1 is needed, but got 99"):
        record.read(tmp_path)
