"""Kills runs at random moments and holds what they come to against a run that nobody killed.

    python -m benchmarks.kills [--kills 25] [--seed 0] [--json]

A run compresses the digits network, with refits, probes and an epoch of fine-tuning, on one thread.
It is ended by SIGKILL at a random time, at a random statement of its journal, or at a random
renaming of a file, and started again until it is done. Identical means: the same architecture, the
same evaluations in the same order with the same scores, the same bytes of `model.safetensors`,
`architecture.json` and `model.onnx`, the same files in the run directory; and that nothing was
scored that the journal held already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from compressor.files import JOURNAL
from compressor.search.journal import Journal

_ROOT = Path(__file__).resolve().parents[1]
_EXACT = ("model.safetensors", "architecture.json", "model.onnx")
_ALWAYS = (
    "architecture",
    "scored",
    "best",
    "frontier",
    "settings",
)  # of result.json, but for times
_KINDS = ("time", "statement", "rename")


@dataclass(frozen=True)
class Come:
    """What a run came to, as far as it does not depend on clocks."""

    result: dict[str, Any]
    hashes: dict[str, str]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One run that was killed.

    Attributes:
        kind: what the moment was chosen by.
        kills: how often it was killed before it was done.
        recorded: evaluations in the journal after each kill.
        repeated: networks that were scored although the journal held them.
        differs: what is not as in the run that nobody killed.
    """

    kind: str
    kills: int
    recorded: tuple[int, ...]
    repeated: int
    differs: tuple[str, ...]

    @property
    def survived(self) -> bool:
        """Whether nothing was repeated and nothing differs."""
        return not self.repeated and not self.differs


def child(out: Path, evaluations: int) -> None:
    """The run itself; `KILL_AT` says at which statement or renaming it ends."""
    import torch  # noqa: PLC0415  (only the child needs it)

    from benchmarks.support import sample  # noqa: PLC0415
    from compressor.device.timing import Schedule  # noqa: PLC0415
    from compressor.run import delivery  # noqa: PLC0415
    from compressor.run.pipeline import compress  # noqa: PLC0415
    from compressor.score.scorer import Scorer  # noqa: PLC0415

    torch.set_num_threads(1)
    kind, _, at = os.environ.get("KILL_AT", "").partition(" ")
    scored, plain = Path(os.environ["SCORED"]), Scorer.__call__

    def told(self: Scorer, architecture: tuple[int, ...]) -> float:
        with scored.open("a", encoding="ascii") as file:
            file.write(f"{list(architecture)}\n")
        return plain(self, architecture)

    Scorer.__call__ = told  # type: ignore[method-assign]
    delivery._FINAL = Schedule(rounds=6, seconds=0.1)  # clocks decide nothing here
    if kind == "statement":
        write = Journal._write

        def counted(self: Journal, *arguments: Any) -> None:
            _die_at(kind, int(at))
            write(self, *arguments)

        Journal._write = counted  # type: ignore[method-assign]
    if kind == "rename":
        sys.addaudithook(lambda event, _: _die_at(kind, int(at)) if event == "os.rename" else None)
    digits = sample("digits")
    compress(
        digits.build_model(), digits.example_input(), budget="madds=40%",
        calibration=digits.calibration_data(), validation=digits.validation_data(),
        training=digits.training_data()[:20], evaluations=evaluations, finetune=1, out=out,
    )  # fmt: skip


_seen: Counter[str] = Counter()


def _die_at(kind: str, at: int) -> None:
    _seen[kind] += 1
    if _seen[kind] == at:
        os.kill(os.getpid(), signal.SIGKILL)


def run(out: Path, evaluations: int, log: Path, kill: str = "") -> float:
    """Starts the run; returns the seconds it took, negative where it was killed."""
    start = time.monotonic()
    kind, _, at = kill.partition(" ")
    process = subprocess.Popen(  # noqa: S603  (our own program)
        [sys.executable, "-m", "benchmarks.kills", "--child", str(out),
         "--evaluations", str(evaluations)],
        cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT), "SCORED": str(log),
             "KILL_AT": "" if kind == "time" else kill},
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=float(at) if kind == "time" else 600)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    seconds = time.monotonic() - start
    if process.returncode == -signal.SIGKILL:
        return -seconds
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {said.decode()[-2000:]}")
    return seconds


def come(out: Path) -> Come:
    """What a finished run left."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    kept = {key: result[key] for key in _ALWAYS}
    for figures in (kept["best"], *kept["frontier"]):
        figures.pop("latency_ms", None)
    hashes = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in _EXACT}
    return Come(kept, hashes, tuple(sorted(p.name for p in out.iterdir())))


def differences(one: Come, other: Come) -> tuple[str, ...]:
    """Names of what is not the same."""
    found = [key for key in _ALWAYS if one.result[key] != other.result[key]]
    found += [name for name in _EXACT if one.hashes[name] != other.hashes[name]]
    return (*found, *(["files"] if one.files != other.files else []))


def _recorded(out: Path) -> set[tuple[int, ...]]:
    if not (out / JOURNAL).is_file() or not (out / JOURNAL).stat().st_size:
        return set()
    with Journal.read(out / JOURNAL) as journal:
        return set(journal.outcomes())


def trial(folder: Path, evaluations: int, whole: Come, moments: Sequence[str]) -> Trial:
    """One run, killed at these moments, unless they come too late, and then ended."""
    out, log = folder / "run", folder / "scored.txt"
    recorded, repeated = [], 0
    for moment in (*moments, ""):
        known = _recorded(out)
        log.write_text("", encoding="ascii")
        killed = run(out, evaluations, log, moment) < 0
        lines = log.read_text(encoding="ascii").splitlines()
        repeated += len({tuple(json.loads(line)) for line in lines} & known)
        if not killed:
            break
        recorded.append(len(_recorded(out)))
    kind = moments[0].partition(" ")[0]
    return Trial(kind, len(recorded), tuple(recorded), repeated, differences(whole, come(out)))


def moments(evaluations: int, took: float, rng: Random) -> list[str]:
    """When a run is killed: once, or a few times."""
    kind, times = rng.choice(_KINDS), rng.choice((1, 1, 2, 3))
    latest = {"statement": 10 + evaluations, "rename": 6}
    if kind == "time":
        return [f"time {rng.uniform(0.3, 1.0) * took:.3f}" for _ in range(times)]
    return [f"{kind} {rng.randint(1, latest[kind])}" for _ in range(times)]


def main() -> int:
    """Returns 1 where a run came to something else."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="runs that are killed")
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.evaluations)
        return 0
    rng = Random(given.seed)  # noqa: S311
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        plain = Path(scratch) / "whole"
        run(plain, given.evaluations, Path(scratch) / "scored.txt")  # trains the network as well
        again = Path(scratch) / "again"
        took = run(again, given.evaluations, Path(scratch) / "scored.txt")
        second = differences(come(plain), come(again))
        print(f"a second process differs in: {', '.join(second) or 'nothing'}", file=sys.stderr)
        while sum(bool(t.kills) for t in trials) < given.kills:
            folder = Path(scratch) / str(len(trials))
            folder.mkdir()
            asked = moments(given.evaluations, took, rng)
            trials.append(trial(folder, given.evaluations, come(plain), asked))
            print(trials[-1], file=sys.stderr, flush=True)
    killed = [t for t in trials if t.kills]
    survived = sum(t.survived for t in killed)
    if given.json:
        print(json.dumps({"second": second, "trials": [asdict(t) for t in killed]}, indent=1))
    else:
        total = sum(t.kills for t in killed)
        print(f"{survived} of {len(killed)} killed runs ({total} kills) came to the same")
    return 0 if survived == len(killed) and not second else 1


if __name__ == "__main__":
    sys.exit(main())
