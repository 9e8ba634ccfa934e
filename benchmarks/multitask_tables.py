"""What `benchmarks.multitask` has found so far, in a file and as tables."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.files import write_json


@dataclass
class Report:
    """Results by seed and way, written down as they come.

    Attributes:
        path: of the file.
        settings: what all results have in common.
        originals: of the original networks, by task.
        searches: seconds of the searches, by seed and kind.
        ways: results, by seed and way.
    """

    path: Path
    settings: dict[str, Any]
    originals: dict[str, Any] = field(default_factory=dict)
    searches: dict[str, dict[str, float]] = field(default_factory=dict)
    ways: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path, settings: dict[str, Any]) -> Report:
        """The report of a file, or an empty one; ends the program where settings differ."""
        if not path.exists():
            return cls(path, settings)
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            sys.exit(f"{path} holds results of other settings: {found['settings']}")
        return cls(path, **found)

    def data(self) -> dict[str, Any]:
        """Plain values."""
        kept = ("settings", "originals", "searches", "ways")
        return {name: getattr(self, name) for name in kept}

    def write(self) -> None:
        """To the file, as a whole."""
        write_json(self.path, self.data())

    def of(self, seed: int, way: str) -> dict[str, Any] | None:
        """What a way came to, if it is known."""
        return self.ways.get(str(seed), {}).get(way)

    def add(self, seed: int, way: str, result: dict[str, Any]) -> None:
        """Takes down a result."""
        self.ways.setdefault(str(seed), {})[way] = result
        self.write()

    def searched(self, seed: int, kind: str, seconds: float) -> None:
        """Takes down what a search took; a resumed one adds to what is known."""
        own = self.searches.setdefault(str(seed), {})
        own[kind] = own.get(kind, 0.0) + seconds
        self.write()

    def total(self, seed: int, way: str, loss: str = "loss") -> float:
        """Sum of the tasks' losses, each divided by the original's."""
        return sum(
            found[loss] / self.originals[task][loss]
            for task, found in self.ways[str(seed)][way]["tasks"].items()
        )


def tables(report: Report, seeds: Sequence[int], ways: Sequence[str]) -> Iterator[str]:
    """Markdown: scores and sums, paired differences, costs."""
    names = list(report.originals)
    yield f"| | {' | '.join(names)} | sum of normalised losses | the same in validation |"
    yield "|---|" + "---:|" * (len(names) + 2)
    cells = [f"{report.originals[name]['top1']:.2f}" for name in names]
    yield f"| original | {' | '.join(cells)} | {len(names):.2f} | {len(names):.2f} |"
    for way in ways:
        cells = [_mean(_top1(report, seeds, way, name)) for name in names]
        sums = [_mean([report.total(s, way, x) for s in seeds], 3) for x in ("loss", "validation")]
        yield f"| {way} | {' | '.join((*cells, *sums))} |"
    yield ""
    yield f"| difference | {' | '.join(names)} | sum of normalised losses |"
    yield "|---|" + "---:|" * (len(names) + 1)
    for one, other in _pairs(ways):
        cells = [
            _difference(_top1(report, seeds, one, name), _top1(report, seeds, other, name))
            for name in names
        ]
        sums = [[report.total(s, way) for s in seeds] for way in (one, other)]
        yield f"| {one} − {other} | {' | '.join((*cells, _difference(*sums, digits=3)))} |"
    yield ""
    yield "| seconds | search | training | of which transfer |"
    yield "|---|---:|---:|---:|"
    for way in ways:
        kind = "alone" if way == "alone" else "shared"
        search = [report.searches[str(s)][kind] for s in seeds]
        took = [
            [report.ways[str(s)][way]["seconds"][x] for s in seeds]
            for x in ("training", "transfer")
        ]
        yield f"| {way} | {' | '.join(_mean(x, 0) for x in (search, *took))} |"


def _top1(report: Report, seeds: Sequence[int], way: str, name: str) -> list[float]:
    return [report.ways[str(s)][way]["tasks"][name]["top1"] for s in seeds]


def _pairs(ways: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All on the shared architecture against `alone`, what learns in rounds against `separate`."""
    rest = [way for way in ways if way not in ("alone", "separate")]
    if "alone" in ways:
        yield from ((way, "alone") for way in ways if way != "alone")
    if "separate" in ways:
        yield from ((way, "separate") for way in rest)


def _mean(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.mean(values):.{digits}f}"


def _difference(one: Sequence[float], other: Sequence[float], digits: int = 2) -> str:
    """Mean of the paired differences, with its standard error where there are several."""
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    mean = f"{statistics.mean(gaps):+.{digits}f}"
    if len(gaps) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.{digits}f}"
