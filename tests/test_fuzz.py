"""Whatever is read ends in success or one of our errors; a slice of `benchmarks.fuzz`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.fuzz import watch
from benchmarks.fuzz.mutate import broken_bytes, broken_json, broken_text
from benchmarks.fuzz.readers import READERS, reader_of
from benchmarks.fuzz.supervise import Case, run_cases
from benchmarks.fuzz.watch import OTHER, OURS, OUTSIDE, SLOW, SUCCESS, Ending, Limits

ROOT = Path(__file__).resolve().parents[1]


def test_two_hundred_broken_inputs_end_in_success_or_one_of_our_errors() -> None:
    found: list[tuple[Case, Ending]] = []
    cases = [Case(reader_of(number, 7), number, 7) for number in range(200)]
    run_cases(cases, Limits(seconds=20.0), 1, lambda case, ending: found.append((case, ending)))
    assert {case.reader for case, _ in found} == set(READERS)
    assert [pair for pair in found if pair[1].outcome not in (SUCCESS, OURS)] == []
    assert len(found) == 200
    assert {ending.outcome for _, ending in found} == {SUCCESS, OURS}


@pytest.mark.sweep
def test_two_thousand_broken_inputs_end_in_success_or_one_of_our_errors() -> None:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--count", "2000", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert json.loads(done.stdout)["bad"] == []


def test_a_seed_decides_what_is_broken() -> None:
    text = json.dumps({"a": [1, 2.5, "x"], "b": {"c": None}})
    for ways in (
        lambda rng: broken_json(text, rng),
        lambda rng: broken_text("madds=50%", rng),
        lambda rng: broken_bytes(bytes(range(256)), rng),
    ):
        drawn = [[ways(Random(f"{seed}")) for seed in range(40)] for _ in range(2)]  # noqa: S311
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) > 20


WATCHED = """
import os, sys, time
from pathlib import Path
from benchmarks.fuzz import readers, watch
from compressor.errors import RunError

def fails(error):
    def read():
        raise error
    return read

def hangs():
    try:
        time.sleep(60)
    except Exception:
        pass

acts = {
    "fine": lambda: None,
    "ours": fails(RunError("no")),
    "bug": fails(KeyError("x")),
    "hangs": hangs,
    "writes": lambda: (Path(os.environ["FUZZ_OUTSIDE"]) / "x.txt").write_text("x"),
    "tmp": lambda: (Path(os.environ["TMPDIR"]) / "x.txt").write_text("x"),
    "far": lambda: os.mkdir(sys.argv[2]),
    "inside": lambda: Path("x.txt").write_text("x"),
    "eats": lambda: bytearray(1 << 40),
}
limits = watch.Limits(seconds=0.5)
sandbox = watch.Sandbox(Path(sys.argv[1]))
for name, act in acts.items():
    readers.READERS[name] = readers.Reader("", lambda folder, rng, act=act: act)
    print(name, "=", watch.run_case(sandbox, Path(), name, 0, 0, limits).outcome)
"""


def test_the_watch_sees_what_goes_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "box"), str(tmp_path / "far")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    assert dict(line.split(" = ") for line in done.stdout.splitlines()) == {
        "fine": SUCCESS, "ours": OURS, "bug": OTHER, "hangs": SLOW, "writes": OUTSIDE,
        "tmp": OUTSIDE, "far": OUTSIDE, "inside": SUCCESS, "eats": watch.LARGE,
    }  # fmt: skip
