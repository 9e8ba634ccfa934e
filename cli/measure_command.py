"""`compressor measure`: times ONNX files against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from cli import options
from cli.output import console, print_json
from cli.progress import watching
from cli.tables import latency_table, noise_note, profile_tables
from compressor.device.devices import parse_device
from compressor.device.job import OPTIMISATIONS, Job, Settings
from compressor.device.local import LOCAL, LocalDevice
from compressor.device.measure import Measured, measure_fully
from compressor.device.profile import Profile
from compressor.device.profiling import profile_models
from compressor.device.timing import Schedule
from compressor.errors import UsageError
from compressor.files import ALL_NETWORKS, NETWORK, QUANTISED, networks_within
from compressor.progress import Event, Progress
from compressor.report.profile_chart import check_picture, write_profile_picture

_SHAPE = re.compile(r"^(.+)=(\d+(?:[x,]\d+)*)$")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PLACE = click.Path(exists=True, path_type=Path)


@click.command("measure")
@click.argument("models", metavar="MODEL.onnx...", nargs=-1, required=True, type=_PLACE)
@click.option(
    "--reference",
    type=_FILE,
    metavar="MODEL.onnx",
    help="What the others are compared with; the first model without.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Batch size, for models that leave it free.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=1x3x224x224",
    help="Shape of an input that leaves more than the batch size free.",
)
@options.threads
@options.provider
@click.option(
    "--optimisation",
    "--optimization",
    "optimisation",
    type=click.Choice(OPTIMISATIONS),
    default="all",
    show_default=True,
    help="How far ONNX Runtime may change the graphs.",
)
@click.option("--affinity", metavar="CORE,CORE…", help="Cores to stay on, for example 0,1.")
@click.option(
    "--seconds",
    type=float,
    default=Schedule().seconds,
    show_default=True,
    help="Time to spend on all models together.",
)
@click.option("--memory", is_flag=True, help="Measure the peak memory of each model too.")
@click.option("--profile", is_flag=True, help="Also say where the time goes, by operator.")
@click.option(
    "--profile-picture",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Also draw where the time goes, the first model beside the others.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Most seconds here for loading a model and running it once, and for timing all of them.",
)
@options.device
@options.as_json
@options.talk
def command(  # noqa: PLR0913  (the options)
    *,
    models: tuple[Path, ...],
    reference: Path | None,
    batch: int,
    shapes: tuple[str, ...],
    affinity: str | None,
    seconds: float,
    memory: bool,
    profile: bool,
    picture: Path | None,
    timeout: float,
    device: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Time ONNX files in ONNX Runtime, in turns; ratios are to the first or to --reference.

    The folder of a run stands for its files: of one network, or of all that it is for.
    """
    models = tuple(file for place in models for file in onnx_files(place))
    settings = Settings(schedule=Schedule(seconds=seconds), affinity=parse_cores(affinity), **how)
    files = {str(path): path for path in referred(models, reference)}
    job = Job(files, settings, batch, parse_shapes(shapes), memory=memory)
    profiled = profile or picture is not None
    _require_profiled(len(files), picture, device if profiled else LOCAL)
    where = parse_device(device)
    if isinstance(where, LocalDevice):
        where = replace(where, trial=timeout)
    with watching(console(stderr=True)) as progress:
        progress(Event("measure", 0, None, device, seconds=seconds))
        found = measure_fully(job, where)
        progress(Event("measure", 1, 1, device))
        profiles = _profiles(job, progress) if profiled else {}
    if picture is not None:
        write_profile_picture({Path(name).name: p for name, p in profiles.items()}, picture)
    if as_json:
        print_json(as_plain(found, job, profiles))
        return
    console().print(latency_table(found.latencies, caption(found, job)))
    for note in noise_note(found.latencies):
        console().print(note)
    for table in profile_tables(profiles) if profile else ():
        console().print(table)


def _require_profiled(models: int, picture: Path | None, device: str) -> None:
    """Refuses, before anything is measured, what cannot be profiled or drawn."""
    if device != LOCAL:
        raise UsageError(
            f"a profile is made on this machine, so --profile needs the device {LOCAL}, but got "
            f"{device!r}; leave one of the two out"
        )
    if picture is not None:
        check_picture(models)


def _profiles(job: Job, progress: Progress) -> dict[str, Profile]:
    progress(Event("profile", 0, 1, "where the time goes"))
    found = profile_models(job.models, job.settings, batch=job.batch, shapes=job.shapes)
    progress(Event("profile", 1, 1, "where the time goes"))
    return found


def onnx_files(place: Path) -> list[Path]:
    """A file, or those of a run: its network's, or all networks', and that which holds them all.

    Raises:
        UsageError: the folder has none.
    """
    if place.is_file():
        return [place]
    folders = [place, *(place / inner for inner in networks_within(place))]
    files = [folder / name for folder in folders for name in (NETWORK, QUANTISED)]
    files.append(place / ALL_NETWORKS)
    found = [path for path in files if path.is_file()]
    if not found:
        raise UsageError(
            "what is measured is an ONNX file, or the folder of a finished run, but "
            f"{str(place)!r} holds no {NETWORK}; name the file"
        )
    return found


def referred(models: Sequence[Path], reference: Path | None) -> list[Path]:
    """The models, the reference first."""
    if reference is None:
        return list(models)
    return [reference, *(path for path in models if not path.samefile(reference))]


def as_plain(found: Measured, job: Job, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    """Figures and verdicts as JSON values; the first model is the reference.

    Provider and optimisation are None where the device does not tell what it used.
    """
    settings, told = job.settings, bool(found.runtime)  # a command decides for itself
    rows = [
        {
            "model": name,
            **asdict(row),
            "noisy": row.noisy,
            "ratio_noisy": row.ratio_noisy,
            "verdict": row.verdict if place else "reference",
            **_profile_json(profiles.get(name)),
        }
        for place, (name, row) in enumerate(found.latencies.items())
    ]
    return {
        "device": found.device,
        "processor": found.processor,
        "runtime": found.runtime,
        "threads": settings.threads,
        "provider": settings.provider if told else None,
        "optimisation": settings.optimisation if told else None,
        "affinity": list(settings.affinity),
        "batch": job.batch,
        "models": rows,
    }


def caption(found: Measured, job: Job) -> str:
    """How and where the figures of a table were taken."""
    settings = job.settings
    parts = [
        f"one call at batch {job.batch}",
        f"{settings.threads} thread{'s' * (settings.threads > 1)}",
        settings.provider if found.runtime else "",
        "" if settings.optimisation == "all" else f"{settings.optimisation} graph optimisation",
        "cores " + ", ".join(map(str, settings.affinity)) if settings.affinity else "",
        found.device,
        found.processor,
        f"ONNX Runtime {found.runtime}" if found.runtime else "",
    ]
    return ", ".join(part for part in parts if part)


def parse_cores(text: str | None) -> tuple[int, ...]:
    """Numbers of cores; none for None.

    Raises:
        UsageError: the text does not have the form `0,1`.
    """
    if text is None:
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text, re.ASCII):
        raise UsageError(f"cores have the form 0,1, but got {text!r}")
    return tuple(int(core) for core in text.split(","))


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
