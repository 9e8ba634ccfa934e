"""A sample read, its library made and its budget resolved, as `compressor compress` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from benchmarks.support import sample
from compressor.budget import parse_budgets
from compressor.cost import Limit
from compressor.limits import resolve_budgets
from compressor.network.layout import laid_out, suits
from compressor.refit.assembly import Assembler
from compressor.refit.library import LayerLibrary, make_library
from compressor.run.reading import read_network
from compressor.score.few import other_images
from compressor.score.judge import make_judge
from compressor.score.scorer import HINTED
from compressor.score.sensitivity import sensitivities
from compressor.search.layer_nas import layer_nas
from compressor.space import Architecture


@dataclass(frozen=True)
class Prepared:
    """What a benchmark needs of a sample.

    Attributes:
        module: the sample.
        model: its network.
        example: its inputs.
        calibration: batches, laid out as the network runs fastest.
        validation: batches, alike.
        library: its layer library.
        limits: the budget in this network's units.
    """

    module: ModuleType
    model: nn.Module
    example: tuple[Tensor, ...]
    calibration: Sequence[Any]
    validation: Sequence[Any]
    library: LayerLibrary
    limits: Sequence[Limit]


def prepare(name: str, budget: str) -> Prepared:
    """Reads a sample; its images stay in memory."""
    module = sample(name)
    model, example = module.build_model().eval().requires_grad_(False), (module.example_input(),)
    calibration, validation = list(module.calibration_data()), list(module.validation_data())
    if suits(model, example):
        calibration, validation = laid_out(calibration), laid_out(validation)
    reading = read_network(model, example, "generic")
    library = make_library(model, reading.space, example, calibration)
    goals = resolve_budgets(parse_budgets(budget), {"madds": reading.madds}, library.space.original)
    limits = [goal.limit() for goal in goals]
    return Prepared(module, model, example, calibration, validation, library, limits)


def hinted(prepared: Prepared) -> Architecture:
    """The first network that a search scores: the best by what single choices cost alone."""
    model, library = prepared.model, prepared.library
    judge = make_judge("agreement", other_images(prepared.calibration, HINTED), model)
    assembler = Assembler(model, library.space, library.consumers)
    found = layer_nas(
        sizes=library.space.sizes, limits=prepared.limits, score=lambda _: 0.0, evaluations=1,
        hints=sensitivities(assembler, library.space, judge, prepared.example),
    )  # fmt: skip
    return found.best.architecture
