"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cli import verbosity
from compressor.names import RANKING_NAMES

talk = verbosity.options
target = click.argument("target")
run = click.argument("run", type=click.Path(path_type=Path))
data = click.option(
    "--data",
    metavar="KIND:PATH",
    help="Data for targets that are no Python code: imagefolder:DIR with DIR/<class>/*.jpg, or "
    "tensors:FILE.safetensors with inputs and perhaps targets.",
)


def _importable(_: click.Context, __: click.Parameter, value: str) -> str:
    """Modules of the folder where the command runs can be named, as Python itself has it."""
    if ":" in value and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return value


adapter = click.option(
    "--adapter",
    default="generic",
    show_default=True,
    metavar="NAME",
    callback=_importable,
    help="How the network is read: a registered name, or package.module:Class, also of a file in "
    "this folder.",
)
drop_blocks = click.option(
    "--drop-blocks",
    is_flag=True,
    help="Let the search leave out residual blocks as a whole.",
)
out = click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run directory. With the journal of an interrupted run, the run resumes.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
refit = click.option(
    "--refit/--no-refit",
    default=True,
    show_default=True,
    help="Refit weights that read cut channels by least squares; no labels, no training.",
)
ranking = click.option(
    "--ranking",
    type=click.Choice(RANKING_NAMES),
    default="reconstruction",
    show_default=True,
    help="Which channels to keep first. Without refitting, reconstruction is magnitude.",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, the rest on stderr."
)
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of ONNX Runtime.",
)
output = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Where to write; - is standard output.",
)
device = click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="DEVICE",
    help="Where latency is measured: local, ssh://user@host[:port], or a command that prints "
    "milliseconds, cmd:'bench {model}'.",
)
latency_folder = click.option(
    "--latency-folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the measured times of operators here, for later runs on this device.",
)
provider = click.option(
    "--provider",
    default="CPUExecutionProvider",
    show_default=True,
    help="Execution provider of ONNX Runtime.",
)
