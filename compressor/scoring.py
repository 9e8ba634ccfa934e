"""From an architecture to a score: materialise, recalibrate, score."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from compressor.data import Batches, Inputs
from compressor.evaluate import Score, as_number, checked_score, recalibrate
from compressor.finetune import Recipe, best_score, fine_tune
from compressor.library import LayerLibrary
from compressor.progress import Progress, silent
from compressor.refit import refit
from compressor.space import Architecture, SearchSpace
from compressor.structure import materialise


@dataclass(frozen=True)
class Scorer:
    """Scores architectures of one network; higher is better.

    Attributes:
        model: the original network; also the teacher.
        space: its search space.
        calibration: batches for BatchNorm statistics.
        score: judges a network.
        training: batches for fine-tuning, or None.
        epochs: fine-tuning before each score (the paper's way; 0 scores right after cutting
            and recalibrating).
        seed: of the fine-tuning.
        library: refitted weights, or None to keep the original's.
    """

    model: nn.Module
    space: SearchSpace
    calibration: Batches
    score: Score
    training: Batches | None = None
    epochs: int = 0
    seed: int = 0
    library: LayerLibrary | None = None

    def __call__(self, architecture: Architecture) -> float:
        """Builds the network of an architecture and scores it."""
        model = self.build(architecture)
        if self.epochs:
            _, scores = self.tuned(model, self.epochs)
            return best_score(scores)
        return as_number(self.score(model))

    def build(self, architecture: Architecture) -> nn.Module:
        """The network, refitted from the library, with BatchNorm statistics of its own."""
        if self.library is not None:
            model = self.library.build(architecture)
        else:
            model = materialise(self.model, self.space, architecture).eval().requires_grad_(False)
        recalibrate(model, self.calibration)
        return model

    def finish(
        self, architecture: Architecture, example: Inputs, progress: Progress = silent
    ) -> tuple[nn.Module, float]:
        """The network as well as it gets without training, and its score.

        With a library it is refitted once more in sequence. Whether BatchNorm statistics of its
        own help after that differs from network to network, so the score decides.

        Raises:
            DataError: the score fails on the network.
        """
        plain = self.build(architecture)
        if self.library is None:
            return plain, self._checked(plain)
        refitted = self.library.build(architecture)
        refit(self.model, refitted, self.space, architecture, example, self.calibration, progress)
        corrected = copy.deepcopy(refitted)
        recalibrate(corrected, self.calibration)
        scored = [(model, self._checked(model)) for model in (refitted, corrected, plain)]
        return max(scored, key=lambda pair: pair[1])

    def _checked(self, model: nn.Module) -> float:
        return checked_score(self.score, model, "the network that was found")

    def tuned(
        self, model: nn.Module, epochs: int, progress: Progress = silent
    ) -> tuple[nn.Module, tuple[float, ...]]:
        """A fine-tuned copy, and its score before and after each epoch.

        Without training data the calibration batches serve: the teacher's answers need no labels.
        """
        batches = self.calibration if self.training is None else self.training
        recipe = Recipe(epochs, seed=self.seed)
        return fine_tune(model, self.model, batches, self.score, recipe, progress)
