"""Compresses one network with ours and with other tools, and prints a Markdown table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.peers.environment import ROOT, describe, python_with_peers
from benchmarks.peers.protocol import METHODS, ORIGINAL, Request, Row
from benchmarks.peers.rows import caller, make_row, with_timings
from benchmarks.peers.table import markdown
from compressor.budget import parse_budget
from compressor.errors import BudgetError
from compressor.files import write_text
from compressor.plain import encode


def main() -> None:
    """Runs every budget, method and seed; exits with 1 where a row failed."""
    options = _options()
    try:
        python = python_with_peers(options.environment)
        environment = describe(python)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the peers' environment must be complete, but: {error}; remove it to try again")
    rows = _rows(options, _requests(options), python)
    report = {
        "sample": options.sample,
        "started": options.started,
        "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        "settings": {
            "seeds": options.seeds,
            "evaluations": options.evaluations,
            "finetune": options.finetune,
            "threads": options.threads,
        },
        "environment": environment,
        "rows": encode(rows),
    }
    if options.json:
        write_text(options.json, json.dumps(report, indent=1) + "\n")
    print(markdown(rows), end="")
    sys.exit(any(row.reason for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--sample", default="cifar10_resnet56", help="a file in samples/")
    parser.add_argument("--budget", nargs="+", type=_budget, default=["madds=50%"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--finetune", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--evaluations", type=int, default=100, help="networks that ours scores")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of ONNX Runtime")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes everything as JSON")
    parser.add_argument("--limit", type=float, default=4 * 3600.0, metavar="SECONDS",
                        help="after which a method is given up")  # fmt: skip
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers",
                        help="what the children write, with their logs")  # fmt: skip
    options = parser.parse_args()
    options.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return options


def _budget(text: str) -> str:
    try:
        budget = parse_budget(text)
    except BudgetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if budget.unit != "madds":
        raise argparse.ArgumentTypeError(f"the peers are compared at equal MAdds, not at {text!r}")
    return text


def _requests(options: argparse.Namespace) -> list[Request]:
    """The original first, once: every latency is a share of its."""
    wanted = [(ORIGINAL, options.budget[0], options.seeds[0])]
    wanted += [(m, b, s) for b in options.budget for m in options.methods for s in options.seeds]
    return [
        Request(
            sample=options.sample,
            method=method,
            budget=budget,
            seed=seed,
            finetune=0 if method == ORIGINAL else options.finetune,
            evaluations=options.evaluations,
            threads=options.threads,
        )
        for method, budget, seed in wanted
    ]


def _rows(options: argparse.Namespace, requests: list[Request], python: Path) -> list[Row]:
    call = caller(python, options.threads, options.limit)
    rows, folders = [], []
    for request in requests:
        name = f"{request.method}-{request.budget}-{request.seed}".replace("=", "-")
        folder = options.out.resolve() / options.sample / name.replace("%", "")
        print(f"{request.method}, {request.budget}, seed {request.seed}", file=sys.stderr)
        rows.append(make_row(request, folder, call))
        folders.append(folder)
        if rows[-1].reason:
            print(f"  failed: {rows[-1].reason}; see {folder}", file=sys.stderr)
    return with_timings(rows, folders, options.threads)


if __name__ == "__main__":
    main()
