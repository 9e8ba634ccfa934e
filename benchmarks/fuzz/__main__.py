"""Breaks thousands of inputs and counts how reading them ends.

python -m benchmarks.fuzz [--count 2000] [--seed 0] [--reader NAME] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict

from benchmarks.fuzz.readers import READERS, reader_of
from benchmarks.fuzz.supervise import Case, run_cases
from benchmarks.fuzz.watch import OURS, OUTCOMES, SUCCESS, Ending, Limits


def main() -> int:
    """Returns 1 where anything ended in something else than success or one of our errors."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--case", type=int, help="one case of --reader, with all that it said")
    parser.add_argument("--seconds", type=float, default=Limits().seconds, help="for one case")
    parser.add_argument("--memory", type=int, default=Limits().memory >> 20, help="MiB, as well")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    numbers = range(given.count) if given.case is None else [given.case]
    cases = [Case(given.reader or reader_of(n, given.seed), n, given.seed) for n in numbers]
    counts: dict[str, Counter[str]] = {case.reader: Counter() for case in cases}
    bad: list[tuple[Case, Ending]] = []

    def told(case: Case, ending: Ending) -> None:
        counts[case.reader][ending.outcome] += 1
        if ending.outcome not in (SUCCESS, OURS):
            bad.append((case, ending))
        if given.case is not None:
            print(ending.outcome, ending.detail)

    limits = Limits(given.seconds, given.memory << 20)
    run_cases(cases, limits, given.workers, told)
    if given.json:
        found = [{**asdict(case), **asdict(ending)} for case, ending in bad]
        print(json.dumps({"cases": len(cases), "counts": counts, "bad": found}, indent=1))
    else:
        print(table(counts))
        for case, ending in bad:
            print(f"\n{case.reader} {case.number}: {ending.outcome}\n{ending.detail}")
    return 1 if bad else 0


def table(counts: dict[str, Counter[str]]) -> str:
    """Reader by outcome, in Markdown."""
    total = sum(counts.values(), Counter[str]())
    rows = [*sorted(counts.items()), ("all", total)]
    lines = [f"| reader | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(row[o]) for o in OUTCOMES)} |" for name, row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
