"""The whole chain: read, search, materialise, fine-tune, export, verify, measure, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.deploy.export import ExportReport
from compressor.deploy.int8 import INT8, require_quantisable
from compressor.device.devices import parse_device
from compressor.device.job import Device, Settings
from compressor.device.local import LOCAL
from compressor.errors import DeviceError
from compressor.files import JOURNAL, run_folder
from compressor.network.data import Batches, as_inputs, device_of, on, tensors_hash
from compressor.network.folding import folded
from compressor.network.opinion import thop_madds
from compressor.progress import Event, Progress, silent
from compressor.report.result import FrontierPoint, RunSummary
from compressor.run.again import export_again
from compressor.run.data_used import CALIBRATION, VALIDATION, data_used, hash_of
from compressor.run.deliveries import deliver_all
from compressor.run.delivery import ONNX, deliver
from compressor.run.finding import find
from compressor.run.reading import Inspection, Reading, describe, read_network, require_layers
from compressor.run.recognition import code_hash, training_hash
from compressor.run.request import Options, Request, Stopwatch, make_request
from compressor.run.staff import require_workers
from compressor.run.summary import Found
from compressor.score.evaluate import Score, checked_score
from compressor.score.judge import Judge
from compressor.search.journal import Journal
from compressor.space import choice_to_json


@dataclass(frozen=True)
class Result:
    """What `compress` hands back.

    Attributes:
        model: the compressed network, in evaluation mode.
        frontier: scored networks that no cheaper one beats, cheapest first.
        onnx_path: the verified ONNX file.
        int8_path: the verified quantised file; None where it was not asked for.
        run: the run directory.
        summary: everything in `result.json`.
        points: of a frontier, the result of each of its budgets, the loosest first; all else but
            `run` is then the loosest's.
    """

    model: nn.Module
    frontier: tuple[FrontierPoint, ...]
    onnx_path: Path
    run: Path
    summary: RunSummary
    int8_path: Path | None = None
    points: tuple[Result, ...] = ()


def compress(  # noqa: PLR0913  (one call is the whole product; all but three have defaults)
    model: nn.Module,
    example_input: Any,
    *,
    budget: str | Sequence[str] = (),
    frontier: str | Sequence[str] | None = None,
    calibration: Batches,
    out: Path | str,
    validation: Batches | None = None,
    training: Batches | None = None,
    score: Score | str | None = None,
    evaluations: int = 100,
    finetune: int = 0,
    score_epochs: int = 0,
    seed: int = 0,
    adapter: str = "generic",
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    refit: bool = True,
    ranking: str = "reconstruction",
    int8: bool = False,
    command: str = "",
    origin: Mapping[str, str | None] | None = None,
    device: str | Device = LOCAL,
    latency_folder: Path | str | None = None,
    keep: str = "best",
    drop_blocks: bool = False,
    workers: int = 1,
    batch: int | None = None,
    ray: str | None = None,
    worker_gpus: float | None = None,
    progress: Progress = silent,
) -> Result:
    """Compresses a network to a budget and writes a verified ONNX file.

    The same call with the same `out` resumes an interrupted run without repeating an evaluation.

    Args:
        model: the pretrained network; not touched. Weights that it computes anew each time, as
            `weight_norm` does, are plain ones in what comes out.
        example_input: a tensor `[N, …]` or a tuple of tensors that the network accepts.
        budget: `"madds=50%"`, `"madds=150M, params=2M"`, a range as `"latency=3ms..4ms"`, or
            several such texts; all hold together. Needed unless there is a `frontier`.
        frontier: upper limits of one unit, `"madds=90%,80%,70%"`: one search, and for each of
            them a network in a folder of its own. Together with `budget`, which all of them keep.
        calibration: batches of inputs, with or without targets; a few hundred inputs are enough.
        out: run directory; see the README for what it will hold.
        validation: batches that judge: inputs, or (inputs, integer targets). Without, a quarter
            of the calibration data judges, and the rest calibrates.
        training: batches for fine-tuning; without, the calibration batches serve.
        score: "top1", "loss" or "agreement" (with the original network, without labels) on
            `validation`, or `score(model) -> float`, higher is better. Without, top-1 where
            `validation` has targets and agreement where not.
        evaluations: networks to score at most.
        finetune: epochs for the network that was found, with the original as teacher.
        score_epochs: epochs for each network before it is scored.
        seed: of the search and of fine-tuning.
        adapter: registered name, or `package.module:Class`.
        threads: of ONNX Runtime, for every latency.
        provider: of ONNX Runtime.
        refit: refit the weights that read cut channels by least squares on the calibration data;
            no labels, no training.
        ranking: which channels to keep first: "reconstruction" (by what their readers can
            reconstruct from the rest; without refitting it is "magnitude"), "magnitude",
            "activation", "taylor" or "bn_scale"; see `docs/library.md`.
        int8: also deliver the network quantised to 8 bits, with ranges from the calibration data;
            a budget of latency then applies to that file, a share of it to the original's time in
            single precision.
        command: shell line that repeats the run, for the report.
        origin: where the network came from, for the report.
        device: where every latency is measured, as `compressor.device.devices.parse_device` reads
            it: "local", "ssh://user@host:port" or "cmd:program … {model} …"; see `docs/latency.md`.
        latency_folder: where the times of single operators are kept, one file for each device,
            so that the next run on it measures only what is new; made where it is missing.
        keep: which epoch of fine-tuning is kept: "best" by the score, the network before included,
            or "last", where the score's data is what the original was trained on.
        drop_blocks: residual blocks may be left out as a whole, each a choice of the search.
        workers: processes that score candidates; more than one needs the extra `ray`. What comes
            out depends on `batch`, not on them; see `docs/workers.md`.
        batch: networks that the search asks for at once; as many as there are workers unless given.
        ray: address of the Ray cluster that the workers run on; without, they run here.
        worker_gpus: GPUs of each worker, or a share of one; without, one where the network is on a
            GPU.
        progress: told after each step.

    Raises:
        UsageError: the request cannot be meant; nothing was written.
        InfeasibleError: the budget is below what the network can be cut to.
        WorkerError: no worker can be had, or one cannot load what it is sent; the same call
            resumes.
        DeviceError: the device fails, more than once where that may help; the journal keeps what
            was found, and the same call resumes.
        CompressorError: see `compressor.errors`.
    """
    options = Options(
        evaluations, finetune, score_epochs, seed, adapter, threads, provider, refit,
        ranking, command,
        dict(origin or {}), parse_device(device) if isinstance(device, str) else device,
        int8, None if latency_folder is None else Path(latency_folder), keep,
        drop_blocks, workers, batch, ray, worker_gpus,
    )  # fmt: skip
    watch = Stopwatch()
    progress(Event("check", 0, 1, "the data, and what the original network makes of it"))
    model = folded(model)
    request = make_request(
        model, example_input, (budget, frontier), calibration, validation, training, score, options
    )
    require_workers(request)
    progress(Event("check", 1, 1))
    with run_folder(Path(out)) as folder:
        with watch.stage("read"):
            reading = read_network(
                model, request.example, adapter, progress, drop_blocks=drop_blocks
            )
        require_layers(reading)
        with watch.stage("score the original"):
            progress(Event("score the original", 0, 1))
            base_score = checked_score(request.score, model)
            progress(Event("score the original", 1, 1, f"{base_score:.4f}"))
        if options.int8:
            settings = Settings(threads, provider)
            require_quantisable(request.model, request.example, request.score, settings)
        with watch.stage("data"):
            progress(Event("data", 0, 1, "hashing what the run depends on"))
            request = replace(request, data=data_used(request))
            progress(Event("data", 1, 1))
        with opened_journal(folder, fingerprint(request, reading)) as journal:
            found = find(request, reading, base_score, journal, watch, progress)
        if not request.frontier:
            return _result(found[0], folder, deliver(request, found[0], folder, watch, progress))
        delivered = deliver_all(request, found, folder, watch, progress)
    points = tuple(_result(f, p, s) for f, (p, s) in zip(found, delivered, strict=True))
    return replace(points[0], run=folder, points=points)


def _result(found: Found, folder: Path, summary: RunSummary) -> Result:
    int8 = None if summary.int8 is None else folder / INT8
    return Result(found.model, summary.frontier, folder / ONNX, folder, summary, int8)


def inspect(
    model: nn.Module,
    example_input: Any,
    *,
    adapter: str = "generic",
    drop_blocks: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """What the search could decide about a network, and what it could not, with reasons.

    Raises:
        DataError: the model does not run on the example.
        UsageError: there is no such adapter, or it finds no blocks.
    """
    model = folded(model)
    example = on(device_of(model), as_inputs(example_input))
    reading = read_network(model, example, adapter, progress, drop_blocks=drop_blocks)
    progress(Event("count", 0, 1, "thop's second opinion"))
    opinion = thop_madds(model, example)
    progress(Event("count", 1, 1))
    return describe(reading, opinion)


def export_run(
    run: Path | str,
    model: nn.Module,
    example_input: Any,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    calibration: Batches = (),
    int8: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Writes the ONNX file of a finished run again; see `compressor.run.again.export_again`."""
    return export_again(
        run,
        model,
        as_inputs(example_input),
        opset=opset,
        dynamic_batch=dynamic_batch,
        calibration=calibration,
        int8=int8,
        progress=progress,
    )


@contextmanager
def opened_journal(folder: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """The run's journal; one that holds nothing to resume from is removed again.

    That is one without a single score: whoever corrects what failed would meet the failures again.
    Only where a device failed or somebody interrupted, latencies that were measured are enough.
    """
    path = folder / JOURNAL
    journal = Journal.open(path, settings)
    stopped = False
    try:
        yield journal
    except (DeviceError, KeyboardInterrupt):
        stopped = True
        raise
    finally:
        empty = all(o.score is None for made in journal.outcomes().values() for o in made)
        empty = empty and not (stopped and journal.measured())
        journal.close()
        if empty:
            path.unlink(missing_ok=True)


def fingerprint(request: Request, reading: Reading) -> dict[str, Any]:
    """What an evaluation depends on; a run with another fingerprint does not resume."""
    options = request.options
    print_ = {
        "model": tensors_hash(request.model.state_dict().items()),
        # with other choices, the same option numbers would stand for other networks
        "search space": [
            [layer.name, [choice_to_json(c) for c in layer.choices]]
            for layer in reading.space.layers
        ],
        "calibration data": hash_of(request.data, CALIBRATION),
        "budget": sorted(str(b) for b in request.budgets),
        "seed": options.seed,
        "score": request.score_name,
        "score_epochs": options.score_epochs,
        **({"keep": options.keep} if options.score_epochs else {}),
        "refit": options.refit,
        "ranking": options.ranked_by,
        **({"drop_blocks": True} if options.drop_blocks else {}),
        **({"batch": options.asked} if options.asked > 1 else {}),
    }
    if not isinstance(request.score, Judge):
        print_["score code"] = code_hash(request.score)
    if options.score_epochs:
        training = request.calibration if request.training is None else request.training
        print_["training data"] = training_hash(training)
    if request.validation is not None:
        print_["validation data"] = hash_of(request.data, VALIDATION)
    if request.frontier:
        print_["frontier"] = sorted(str(b) for b in request.frontier)
    if "latency" in request.units:
        print_ |= {"threads": options.threads, "provider": options.provider}
        print_["device"] = options.device.name
        if options.int8:
            print_["int8"] = True
    return print_
