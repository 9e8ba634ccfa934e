"""`compressor measure`: times ONNX files against each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from cli import options
from cli.output import console, print_json
from cli.tables import latency_table
from compressor.errors import UsageError
from compressor.measure import Settings, measure

_SHAPE = re.compile(r"^(.+)=(\d+(?:[x,]\d+)*)$")


@click.command("measure")
@click.argument(
    "models",
    metavar="MODEL.onnx...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@options.threads
@options.provider
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=1x3x224x224",
    help="Shape of an input that leaves more than the batch size free.",
)
@options.as_json
def command(
    models: tuple[Path, ...], threads: int, provider: str, shapes: tuple[str, ...], as_json: bool
) -> None:
    """Time ONNX files in ONNX Runtime, in turns, at batch 1; ratios are to the first."""
    found = measure(
        {str(path): path for path in models},
        Settings(threads, provider),
        shapes=parse_shapes(shapes),
    )
    if as_json:
        rows = [{"model": name, **asdict(latency)} for name, latency in found.items()]
        print_json({"threads": threads, "provider": provider, "models": rows})
        return
    console().print(latency_table(found, threads, provider))


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Input name to shape.

    Raises:
        UsageError: a text does not have the form `INPUT=1x3x224x224`.
    """
    shapes = {}
    for text in texts:
        match = _SHAPE.match(text)
        if not match:
            raise UsageError(f"a shape has the form INPUT=1x3x224x224, but got {text!r}")
        shapes[match[1]] = tuple(int(size) for size in re.split("[x,]", match[2]))
    return shapes
