"""From an architecture to a score: materialise, recalibrate, score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compressor.data import Batches
from compressor.evaluate import Score, as_number, recalibrate
from compressor.finetune import Recipe, best_score, fine_tune
from compressor.progress import Progress, silent
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
    """

    model: nn.Module
    space: SearchSpace
    calibration: Batches
    score: Score
    training: Batches | None = None
    epochs: int = 0
    seed: int = 0

    def __call__(self, architecture: Architecture) -> float:
        """Builds the network of an architecture and scores it."""
        model = self.build(architecture)
        if self.epochs:
            _, scores = self.tuned(model, self.epochs)
            return best_score(scores)
        return as_number(self.score(model))

    def build(self, architecture: Architecture) -> nn.Module:
        """The materialised network with BatchNorm statistics of its own, in evaluation mode."""
        model = materialise(self.model, self.space, architecture).eval().requires_grad_(False)
        recalibrate(model, self.calibration)
        return model

    def tuned(
        self, model: nn.Module, epochs: int, progress: Progress = silent
    ) -> tuple[nn.Module, tuple[float, ...]]:
        """A fine-tuned copy, and its score before and after each epoch.

        Without training data the calibration batches serve: the teacher's answers need no labels.
        """
        batches = self.calibration if self.training is None else self.training
        recipe = Recipe(epochs, seed=self.seed)
        return fine_tune(model, self.model, batches, self.score, recipe, progress)
