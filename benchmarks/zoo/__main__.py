"""Other people's networks: is each halved, correct, and exported?

    python -m benchmarks.zoo                      # torchvision, and the smallest of timm's families
    python -m benchmarks.zoo 'torchvision:*resnet*' --json
    python -m benchmarks.zoo --peer               # torch-pruning on the same list

Each network runs in a process of its own, with limits on time and memory. `ok` is a network that
was cut to half its MAdds, gives the outputs of the masked original (double precision), and whose
ONNX file ONNX Runtime loads and runs to torch's outputs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.networks import names

_GIB = 1 << 30


def outcome(name: str, seconds: float, memory: float, module: str = "worker") -> dict[str, Any]:
    """What came of one network; a process that hangs, grows or dies is an outcome."""
    command = [sys.executable, "-m", f"benchmarks.zoo.{module}", name]
    size = int(memory * _GIB)
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (size, size))
    failed = {"name": name, "ok": False, "contract": None, "seconds": seconds}
    try:
        done = subprocess.run(  # noqa: S603  (our own program)
            command, capture_output=True, text=True, check=False, timeout=seconds, preexec_fn=limit
        )
    except subprocess.TimeoutExpired:
        return failed | {"reason": f"took longer than {seconds:g} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return failed | {"reason": f"died with status {done.returncode}: {said}"}
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The outcomes in Markdown."""
    lines = [
        "| network | ok | layers | MAdds that can shrink | reached | seconds | MB | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = [f"{row[k]:.0%}" if k in row else "–" for k in ("madds_share", "madds_ratio")]
        lines.append(
            f"| {row['name']} | {'yes' if row['ok'] else 'no'} | {row.get('layers', '–')} | "
            f"{shares[0]} | {shares[1]} | {row['seconds']:.0f} | {row.get('peak_mb', 0):.0f} | "
            f"{row['reason'].replace('|', '/')} |"
        )
    good = [row for row in rows if row["ok"]]
    mean = sum(row.get("madds_share", 0.0) for row in good) / max(len(good), 1)
    lines.append("")
    lines.append(
        f"{len(good)} of {len(rows)}; silently wrong: "
        f"{sum(row['contract'] is False for row in rows)}; mean share of the MAdds that can "
        f"shrink, over those: {mean:.1%}"
    )
    return "\n".join(lines)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--seconds", type=float, default=300, help="for each network")
    parser.add_argument("--memory", type=float, default=12, help="GiB of address space for each")
    parser.add_argument(
        "--peer", action="store_true", help="what torch-pruning makes of them instead"
    )
    parser.add_argument("--json", action="store_true", help="print the list of outcomes")
    parser.add_argument("--save", type=Path, help="file for that list, as far as it is known")
    given = parser.parse_args()
    rows = []
    for name in names(given.patterns):
        module = "peer" if given.peer else "worker"
        rows.append(outcome(name, given.seconds, given.memory, module))
        print(f"{name}: {rows[-1]['reason'] or 'ok'}", file=sys.stderr, flush=True)
        if given.save:
            given.save.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1) if given.json else table(rows))


if __name__ == "__main__":
    main()
