"""The whole chain where blocks may be dropped: searched, resumed, exported, loaded, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compressor
from cli.main import main
from compressor.deploy.artefacts import load, read_architecture
from compressor.errors import RunError
from compressor.files import JOURNAL
from compressor.network.blocks import Dropped
from compressor.report.result import RunSummary
from compressor.run.pipeline import inspect
from compressor.search.journal import Journal
from tests.test_blocks import Transformer
from tests.test_pipeline import without_export

EXAMPLE = torch.zeros(1, 3, 16, 16)


def model() -> nn.Module:
    torch.manual_seed(0)
    return Transformer().eval()


def batches() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(16, 3, 16, 16, generator=rng) for _ in range(4)]


def compress(out: Path, **changes: Any) -> compressor.Result:
    settings = {"budget": "madds=35%", "evaluations": 10, "drop_blocks": True, **changes}
    return compressor.compress(model(), EXAMPLE, calibration=batches(), out=out, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("blocks") / "run"
    compress(out, finetune=1)
    return out


def test_the_network_lacks_blocks_and_is_saved_without_them(run: Path) -> None:
    space, architecture = read_architecture(run)
    assert space.canonical(architecture) == architecture
    dropped = space.dropped(architecture)
    assert dropped
    small = load(run, model())
    assert all(isinstance(small.get_submodule(b.module), Dropped) for b in dropped)
    x = batches()[0]
    session = onnxruntime.InferenceSession(run / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), small(x), rtol=1e-4, atol=1e-5)
    summary = RunSummary.read(run)
    assert summary.best.params == sum(p.numel() for p in small.parameters())
    assert summary.settings["drop_blocks"] is True


def test_the_report_and_the_result_say_what_was_dropped(run: Path) -> None:
    space, architecture = read_architecture(run)
    rows = {row.name: row for row in RunSummary.read(run).widths}
    dropped = space.dropped(architecture)
    for layer, choice in space.choices(architecture):
        inside = any(all(map(b.holds, layer.touched)) for b in dropped if layer.touched)
        assert str(rows[layer.name].chosen) == ("dropped" if inside else str(choice))
        if layer.block:
            assert rows[layer.name].original.kept is True
            assert rows[layer.name].chosen.kept is choice.kept
    assert "dropped" in (run / "report.html").read_text(encoding="utf-8")
    described = json.loads((run / "architecture.json").read_text(encoding="utf-8"))["choices"]
    assert "dropped" in described.values()


def test_nothing_was_scored_twice_and_the_trace_is_the_same_search(run: Path) -> None:
    space, _ = read_architecture(run)
    with Journal.read(run / JOURNAL) as journal:
        scored = [a for a, _ in journal.evaluations()]
    assert len(set(map(space.canonical, scored))) == len(scored)
    assert [e.architecture for e in compressor.read_trace(run).scored] == scored


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_export(monkeypatch)
    whole = compress(tmp_path / "whole", evaluations=6)

    calls = 0

    def stops(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return -float(sum(p.detach().abs().sum() for p in net.parameters()))

    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "again", evaluations=6, score=stops)
    with pytest.raises(RunError, match="drop_blocks was true and is now not given"):
        compress(tmp_path / "again", evaluations=6, score=stops, drop_blocks=False)
    resumed = compress(tmp_path / "again", evaluations=6, score=stops)
    assert resumed.summary.evaluations == whole.summary.evaluations == 6


def test_inspect_shows_the_blocks_and_their_share() -> None:
    without, found = inspect(model(), EXAMPLE), inspect(model(), EXAMPLE, drop_blocks=True)
    blocks = [layer for layer in found.layers if layer.choices == ("dropped", "kept")]
    assert [b.name for b in blocks] == ["blocks.0", "blocks.1"]
    assert len(found.layers) == len(without.layers) + 2
    assert found.share >= without.share
    assert all(b.madds == b.removable > 0 for b in blocks)
    assert found.least_madds < without.least_madds


def test_the_commands_take_the_option(tmp_path: Path) -> None:
    target = tmp_path / "net.py"
    target.write_text(
        "import torch\nfrom tests.test_pipeline_blocks import EXAMPLE, model as build_model\n"
        "def example_input():\n    return EXAMPLE\n"
    )
    shown = CliRunner().invoke(main, ["inspect", str(target), "--drop-blocks", "--json"])
    assert shown.exit_code == 0, shown.output
    names = [layer["name"] for layer in json.loads(shown.stdout)["layers"]]
    assert "blocks.0" in names
    shown = CliRunner().invoke(main, ["inspect", str(target), "--drop-blocks"])
    assert "dropped" in shown.output
