"""How much every single choice costs on its own: the first thing a search should know.

Each choice of each layer is made alone in the otherwise original network, with its consumers
refitted from the library, and the outputs are compared with the original's on unlabelled images.
Everything before the first changed module is the original, so its passes are shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from compressor.network.counting import evaluating
from compressor.network.data import Inputs, device_of
from compressor.network.replay import Calls, Replay, trace_calls
from compressor.progress import Event, Progress, silent
from compressor.refit.assembly import Assembler
from compressor.score.judge import Judge
from compressor.space import Architecture, Choice, SearchSpace

_MEASURED = 4  # options measured for each kernel of a layer; those between are interpolated


def sensitivities(
    assembler: Assembler,
    space: SearchSpace,
    judge: Judge,
    example: Inputs,
    progress: Progress = silent,
) -> tuple[tuple[float, ...], ...]:
    """The cost of each option of each layer: how far it takes the score down.

    Errors of several cuts add up nearly as squares do, and a divergence between softened answers
    is a square of what the outputs differ by. Where a layer decides channels and kernel, each
    kernel is looked at alone: next to each other in the list lie few channels with a large kernel
    and many with a small one, and neither can do all the other can.

    Args:
        assembler: makes the networks.
        space: its search space.
        judge: compares with the original; 0 is the original's own score.
        example: inputs `[N, …]`.
        progress: told after each layer.

    Returns:
        For each layer one number for each option, at least 0; the original's is 0.
    """
    calls = trace_calls(assembler.network, example)
    replay = Replay(assembler.network, calls)
    found: dict[int, tuple[float, ...]] = {}

    def start(number: int) -> int:
        first = _first(assembler, calls, with_option(space.original, number, 0))
        return 0 if first is None else calls.once[first].start

    order = sorted(range(len(space.layers)), key=start)
    for done, number in enumerate(order):
        rows = rows_of(space.layers[number].choices)
        known = {space.original[number]: 0.0}
        for option in _measured(rows, space.original[number]):
            single = with_option(space.original, number, option)
            known[option] = max(0.0, -_score(assembler, replay, calls, judge, single))
        found[number] = _filled(known, rows)
        progress(Event("sensitivity", done + 1, len(order), space.layers[number].name))
    assembler.assemble(space.original)
    return tuple(found[i] for i in range(len(space.layers)))


def _first(assembler: Assembler, calls: Calls, single: Architecture) -> str | None:
    """The first module that a choice changes; None where nothing changes or that is not known."""
    paths = assembler.changed(assembler.original, single)
    if any(path not in calls.once for path in paths):
        return None
    return min(paths, key=lambda path: calls.once[path].start, default=None)


def _score(
    assembler: Assembler, replay: Replay, calls: Calls, judge: Judge, single: Architecture
) -> float:
    network = assembler.assemble(single)
    first = _first(assembler, calls, single)
    done = () if first is None else calls.before(first)
    if first is None:
        replay.keep(())
    values = []
    with evaluating(network), torch.no_grad():
        for batch, inputs, targets in judge.inputs(device_of(network)):
            values.append(judge.values(batch, replay.run(batch, inputs, done), targets))
    return float(torch.cat(values).mean())


def with_option(network: Architecture, number: int, option: int) -> Architecture:
    """The network with another option in one layer."""
    return (*network[:number], option, *network[number + 1 :])


def rows_of(choices: Sequence[Choice]) -> list[list[int]]:
    """The options of each kernel, from few channels to many."""
    rows: dict[int | None, list[int]] = {}
    for option, choice in enumerate(choices):
        rows.setdefault(choice.kernel, []).append(option)
    return [sorted(row, key=lambda option: choices[option].channels or 0) for row in rows.values()]


def _measured(rows: Sequence[Sequence[int]], original: int) -> list[int]:
    """Which options but the original are measured: of each kernel the ends, and evenly between."""
    found: list[int] = []
    for row in rows:
        unknown = [option for option in row if option != original]
        last = len(unknown) - 1
        steps = min(last, _MEASURED - 1)
        found += [unknown[round(i * last / max(1, steps))] for i in range(steps + 1)]
    return found


def _filled(known: Mapping[int, float], rows: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """All options in order, each kernel's by those of that kernel that are known."""
    values: dict[int, float] = {}
    for row in rows:
        places = {place: known[option] for place, option in enumerate(row) if option in known}
        values |= zip(row, _line(places, len(row)), strict=True)
    return tuple(values[option] for option in sorted(values))


def _line(known: Mapping[int, float], size: int) -> list[float]:
    """All values, those between two known ones on the line between them, never rising."""
    values: list[float] = []
    for place in range(size):
        below = max(p for p in known if p <= place)
        above = min(p for p in known if p >= place)
        share = 0.0 if below == above else (place - below) / (above - below)
        values.append(known[below] + share * (known[above] - known[below]))
    for place in range(size - 2, -1, -1):
        # with the same kernel, more channels can do all that fewer do
        values[place] = max(values[place], values[place + 1])
    return values
