"""The zoo benchmark: what it says of networks, also of those that fail."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.__main__ import outcome, table
from benchmarks.zoo.page import page
from tests.vision import torchvision

GOOD = {
    "name": "torchvision:resnet18", "ok": True, "reason": "", "contract": True, "layers": 12,
    "madds_share": 1.0, "madds_ratio": 0.49, "seconds": 6.2, "read_seconds": 2.0, "peak_mb": 748.0,
    "read_cpu_seconds": 1.0,
}  # fmt: skip
WRONG = GOOD | {"name": "torchvision:alexnet", "ok": False, "contract": False, "reason": "a | b"}
DEAD = {
    "name": "torchvision:densenet121", "ok": False, "contract": None, "seconds": 9.0,
    "reason": "hangs",
}  # fmt: skip


def by_name(*rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_a_network_that_cannot_be_built_is_an_outcome() -> None:
    found = outcome("torchvision:no_such_network", seconds=120, memory=12)
    assert found["ok"] is False
    assert "no_such_network" in found["reason"]
    assert "\n" not in found["reason"]
    assert {"name", "contract", "seconds", "peak_mb"} <= found.keys()


def test_the_table_counts_what_is_silently_wrong() -> None:
    said = table([GOOD, WRONG, DEAD])
    assert "1 of 3; silently wrong: 1; mean share of the MAdds that can shrink" in said
    assert "a / b" in said


def test_the_page_shows_failures_and_what_torch_pruning_made() -> None:
    torchvision()
    peers = by_name(GOOD, DEAD | {"reason": "KeyError: 'x'"})
    said = page(by_name(GOOD, WRONG, DEAD), peers)
    assert "| torchvision:resnet18 | yes | 12 | 100% | 49% | 2 | 1 | 6 | 748 | runs, 49% |" in said
    assert (
        "| torchvision:densenet121 | no | – | – | – | – | – | 9 | 0 | KeyError: 'x' | hangs |"
        in said
    )
    assert "1 of 3 reach half their MAdds" in said
    assert "silently wrong: 1" in said
    assert "Reading: 1 s of a core at most, 0 of 2 above 30 s; memory: 0.7 GB at most." in said
    assert "torch-pruning's runs: 1 of 2." in said
