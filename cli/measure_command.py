"""`compressor measure`: times ONNX files against each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli import options
from cli.output import console, print_json
from cli.tables import latency_table, profile_tables
from compressor.errors import UsageError
from compressor.measure import Settings, measure
from compressor.profile import Profile
from compressor.profile_chart import check_picture, write_profile_picture
from compressor.profiling import profile_models

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
@click.option("--profile", is_flag=True, help="Also say where the time goes, by operator.")
@click.option(
    "--profile-picture",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Also draw where the time goes, the first model beside the others.",
)
@options.as_json
def command(
    models: tuple[Path, ...],
    threads: int,
    provider: str,
    shapes: tuple[str, ...],
    profile: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Time ONNX files in ONNX Runtime, in turns, at batch 1; ratios are to the first."""
    sources = {str(path): path for path in models}
    if picture is not None:
        check_picture(len(sources))  # told before anything is measured
    settings, given = Settings(threads, provider), parse_shapes(shapes)
    found = measure(sources, settings, shapes=given)
    profiles: dict[str, Profile] = {}
    if profile or picture is not None:
        profiles = profile_models(sources, settings, shapes=given)
    if picture is not None:
        write_profile_picture({Path(name).name: p for name, p in profiles.items()}, picture)
    if as_json:
        rows = [
            {"model": name, **asdict(latency), **_profile_json(profiles.get(name))}
            for name, latency in found.items()
        ]
        print_json({"threads": threads, "provider": provider, "models": rows})
        return
    console().print(latency_table(found, threads, provider))
    for table in profile_tables(profiles) if profile else ():
        console().print(table)


def _profile_json(profile: Profile | None) -> dict[str, Any]:
    if profile is None:
        return {}
    operators = [
        {"kind": kind, "calls": node.calls, "ms": node.ms, "share": profile.share(node)}
        for kind, node in profile.by_kind().items()
    ]
    nodes = [{**asdict(node), "share": profile.share(node)} for node in profile.nodes]
    return {
        "profile": {
            "runs": profile.runs, "ms": profile.ms, "operators": operators, "nodes": nodes,
        }
    }  # fmt: skip


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
