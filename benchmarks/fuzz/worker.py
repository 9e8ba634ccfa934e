"""A program that runs cases: one line with reader, number and seed in, one line of JSON out."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from benchmarks.fuzz.watch import Limits, Sandbox, run_case


def main() -> None:
    """Takes the folders of valid inputs and of the sandbox, and the limits, as arguments."""
    valid, root = Path(sys.argv[1]), Path(sys.argv[2])
    limits = Limits(float(sys.argv[3]), int(sys.argv[4]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # what the product and its libraries print is not an answer
    warnings.simplefilter("ignore")
    sandbox = Sandbox(root)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        reader, number, seed = line.split()
        ending = run_case(sandbox, valid, reader, int(number), int(seed), limits)
        answers.write(json.dumps(asdict(ending)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
