"""Where one call spends its time, operator by operator. Knows no ONNX Runtime and no torch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressor.errors import MeasureError

Key = Callable[["NodeTime"], str]

_TIME = "_kernel_time"  # ONNX Runtime's suffix for the run itself, without its preparation
# What the runtime appends to a name when it replaces operators: by blocked convolutions, by fused
# ones, by quantised ones.
_SUFFIX = re.compile(r"_(nchwc|token_\d+|QuantizeLinear|DequantizeLinear|quant|q)$")
REST = "other"
"""Name of what `grouped` puts together."""


@dataclass(frozen=True)
class Origin:
    """Where an operator of a graph comes from.

    Attributes:
        module: path of the network's module; empty where the graph does not say.
        form: kernel and groups of a convolution, for example `3x3 depthwise`.
    """

    module: str = ""
    form: str = ""


@dataclass(frozen=True)
class NodeTime:
    """Time of one operator of the graph as ONNX Runtime runs it, fused with its neighbours.

    Attributes:
        name: the operator's name in the runtime, or the group's.
        kind: operator and form, for example `Conv 3x3 depthwise`.
        module: path of the network's module that it belongs to; empty where that is not known.
        calls: calls in one run of the model.
        ms: milliseconds in one run of the model.
    """

    name: str
    kind: str
    module: str
    calls: float
    ms: float

    @property
    def place(self) -> str:
        """The module, or the operator's own name where no module is known."""
        return self.module or self.name


@dataclass(frozen=True)
class Profile:
    """Where one run of a model spends its time.

    Attributes:
        nodes: operators in the order in which they run.
        runs: runs that were observed.
    """

    nodes: tuple[NodeTime, ...]
    runs: int

    @property
    def ms(self) -> float:
        """Milliseconds of all operators together."""
        return sum(node.ms for node in self.nodes)

    def share(self, node: NodeTime) -> float:
        """Share of the time of all operators, in 0..1."""
        return node.ms / self.ms if self.ms else 0.0

    def by_kind(self) -> dict[str, NodeTime]:
        """Sum of the operators of each kind, the slowest first."""
        return _summed(self.nodes, lambda node: node.kind)

    def by_place(self) -> dict[str, NodeTime]:
        """Sum of the operators of each module, the slowest first."""
        return _summed(self.nodes, lambda node: node.place)


def read_events(
    events: Iterable[Mapping[str, Any]], runs: int, origins: Mapping[str, Origin] | None = None
) -> Profile:
    """The profile of the last runs that ONNX Runtime's profiler noted.

    An operator's time is the mean of the middle half of its times: a run that was interrupted does
    not count, and the mean of whole microseconds is finer than one of them. Operators inside the
    body of a loop or a branch count as the operator that holds them.

    Args:
        events: content of the profiler's file.
        runs: how many runs count; those before them were the warm-up.
        origins: name of an operator or of its output to where it comes from.

    Raises:
        MeasureError: fewer runs were noted, or an event has another form.
    """
    try:
        noted = sorted(events, key=lambda e: (e["ts"], -e["dur"]))
        spans = [e for e in noted if e["name"] == "model_run"][-runs:]
        nodes = [e for e in noted if e["cat"] == "Node" and e["name"].endswith(_TIME)]
        if len(spans) < runs:
            raise MeasureError(
                f"a profile of {runs} runs was asked for, but ONNX Runtime noted {len(spans)}; "
                "ask for fewer runs"
            )
        return Profile(_times(_outermost(nodes), spans, origins or {}), runs)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MeasureError(
            f"ONNX Runtime's profile has an unknown form ({type(error).__name__}: {error}); "
            "another version of onnxruntime may help"
        ) from error


def grouped(
    profiles: Mapping[str, Profile], key: Key, most: int
) -> list[tuple[str, list[NodeTime | None]]]:
    """Rows that compare profiles: each group's time in each of them, the slowest group first.

    Args:
        profiles: name to profile.
        key: group of an operator.
        most: rows at most; the smallest groups become one row, `REST`, which comes last.

    Returns:
        Group and its time in each profile, in their order; None where it has no such operator.
    """
    sums = [_summed(profile.nodes, key) for profile in profiles.values()]
    longest: dict[str, float] = defaultdict(float)
    for summed in sums:
        for group, node in summed.items():
            longest[group] = max(longest[group], node.ms)
    order = sorted(longest, key=lambda group: -longest[group])
    kept = order if len(order) <= most else order[: most - 1]
    rows = [(group, [summed.get(group) for summed in sums]) for group in kept]
    rest = set(order) - set(kept)
    if rest:
        rows.append((REST, [_rest(summed, rest) for summed in sums]))
    return rows


def _summed(nodes: Iterable[NodeTime], key: Key) -> dict[str, NodeTime]:
    found: dict[str, NodeTime] = {}
    for node in nodes:
        group = key(node)
        have = found.get(group)
        found[group] = replace(
            node, name=group, calls=node.calls + (have.calls if have else 0),
            ms=node.ms + (have.ms if have else 0.0),
        )  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: -item[1].ms))


def _rest(summed: Mapping[str, NodeTime], groups: set[str]) -> NodeTime | None:
    nodes = [node for group, node in summed.items() if group in groups]
    if not nodes:
        return None
    return NodeTime(REST, REST, "", sum(n.calls for n in nodes), sum(n.ms for n in nodes))


def _outermost(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those that ran while another one did; sorted by start, the longest first."""
    kept, end = [], -math.inf
    for event in nodes:
        if event["ts"] >= end:
            kept.append(event)
            end = event["ts"] + event["dur"]
    return kept


def _times(
    events: Sequence[Mapping[str, Any]],
    spans: Sequence[Mapping[str, Any]],
    origins: Mapping[str, Origin],
) -> tuple[NodeTime, ...]:
    """One figure for each operator; all runs have the same ones unless the graph branches."""
    durations: dict[str, list[float]] = {}
    calls: dict[str, int] = defaultdict(int)
    operators: dict[str, str] = {}
    at = 0
    for number, span in enumerate(spans):
        while at < len(events) and events[at]["ts"] < span["ts"]:
            at += 1
        while at < len(events) and events[at]["ts"] <= span["ts"] + span["dur"]:
            event = events[at]
            name = event["name"].removesuffix(_TIME)
            durations.setdefault(name, [0.0] * len(spans))[number] += float(event["dur"])
            calls[name] += 1
            operators.setdefault(name, str(event["args"]["op_name"]))
            at += 1
    return tuple(
        _node(name, operators[name], _origin(name, origins), calls[name] / len(spans), _ms(taken))
        for name, taken in durations.items()
    )


def _node(name: str, operator: str, origin: Origin, calls: float, ms: float) -> NodeTime:
    # An operator fused to a convolution has its form as well, and is none itself.
    kind = f"{operator} {origin.form}" if origin.form and "Conv" in operator else operator
    return NodeTime(name, kind, origin.module, calls, ms)


def _ms(microseconds: Sequence[float]) -> float:
    """Mean of the middle half."""
    ordered = sorted(microseconds)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle) / 1e3


def _origin(name: str, origins: Mapping[str, Origin]) -> Origin:
    """Where an operator comes from by its name, also without what the runtime appended to it."""
    while name not in origins:
        shorter = _SUFFIX.sub("", name)
        if shorter == name:
            return Origin()
        name = shorter
    return origins[name]
