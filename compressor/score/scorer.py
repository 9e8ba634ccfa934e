"""From an architecture to a score, and from the one that was chosen to a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compressor.errors import DataError
from compressor.network.data import Batches, Inputs, size_of, split
from compressor.network.structure import materialise
from compressor.progress import Event, Progress, silent
from compressor.refit.assembly import Assembler
from compressor.refit.library import LayerLibrary
from compressor.refit.sequence import Refitter
from compressor.score.evaluate import Score, as_number, attempt, recalibrate
from compressor.score.few import few_images, other_images
from compressor.score.finetune import Learner, Recipe, kept_score
from compressor.score.judge import Judge, make_judge
from compressor.score.probe import MOST, WORTH, Probe, affordable
from compressor.score.sensitivity import sensitivities
from compressor.score.trials import Standard, Trials
from compressor.search.ledger import Known
from compressor.search.trend import Hints
from compressor.space import Architecture

HINTED = 256
"""Images on which single choices are compared with the original before the search."""


@dataclass(frozen=True)
class Recipes:
    """How networks are made from what was cut.

    Attributes:
        refit: whether weights are refitted; otherwise BatchNorm is recalibrated.
        epochs: fine-tuning before each score (the paper's way); 0 scores without training.
        seed: of fine-tuning.
        keep: which epoch is kept, a name of `compressor.names.KEEP`.
    """

    refit: bool = True
    epochs: int = 0
    seed: int = 0
    keep: str = "best"


@dataclass(frozen=True)
class Guide:
    """What is known of single choices, as `layer_nas` takes it; each may be missing.

    Attributes:
        hints: cost of every option alone in the original network.
        probe: cost of the neighbours of any network.
    """

    hints: Hints | None = None
    probe: Callable[[Architecture], Hints] | None = None


class Scorer:
    """Scores architectures of one network, higher is better.

    A candidate that is clearly worse than the best one so far is given up and gets an estimate
    against that one (see `Trials`): its score then depends on what was scored before it.

    Attributes:
        library: the original network, its search space with ranked channels, what can be refitted.
    """

    def __init__(
        self,
        library: LayerLibrary,
        example: Inputs,
        calibration: Batches,
        score: Score,
        recipes: Recipes,
        *,
        training: Batches | None = None,
        eligible: Callable[[Architecture], bool] = lambda _: True,
    ) -> None:
        """Prepares what all candidates share.

        Args:
            library: from `make_library`.
            example: inputs `[N, …]`.
            calibration: batches for refits and BatchNorm statistics.
            score: judges a network; a `Judge` is asked image by image.
            recipes: how networks are made.
            training: batches for fine-tuning; without, the calibration batches serve.
            eligible: whether an architecture may be what others are compared with.
        """
        self.library = library
        self._example, self._calibration, self._training = example, calibration, training
        self._score, self._recipes = score, recipes
        self._trials: Trials | None = None
        if recipes.refit and not recipes.epochs:
            assembler = Assembler(library.model, library.space, library.consumers)
            self._few = few_images(calibration)
            refitter = Refitter(library.model, library.space, example, self._few, remember=True)
            self._trials = Trials(library.model, assembler, refitter, score, eligible)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that it was made of, in words; what it has learned is not among it."""
        return {
            "the network": self.library,
            "the example input": self._example,
            "the calibration data": self._calibration,
            "the score or its validation data": self._score,
            "the recipes": self._recipes,
            "the training data": self._training,
        }

    def __reduce__(self) -> tuple[Callable[..., Scorer], tuple[Any, ...]]:
        """Sent elsewhere, it is one of the same network that has not scored anything yet."""
        return _like, tuple(self.parts.values())

    def resume(self, known: Known) -> None:
        """Takes over what an interrupted run has found out."""
        if self._trials is not None:
            self._trials.resume(known)

    def guide(self, progress: Progress = silent) -> Guide:
        """What single choices cost, to start the search from and to steer it by.

        Told in agreement with the original on a few calibration images, whatever the score is; it
        needs no labels. There is no probe where it would take longer than a few evaluations, even
        on few images.
        Empty where networks are not refitted before they are scored, or where
        outputs cannot be compared, which only the user's own score can judge.
        """
        if self._trials is None:
            return Guide()
        model, space = self.library.model, self.library.space
        assembler = Assembler(model, space, self.library.consumers)
        try:
            judge = self._agreement(HINTED)
            hints = sensitivities(assembler, space, judge, self._example, progress)
        except DataError as error:
            progress(Event("sensitivity", 0, None, f"left out: {error}"))
            return Guide()
        return Guide(hints, self.probe(progress))

    def probe(self, progress: Progress = silent) -> Probe | None:
        """What tells the cost of a network's neighbours; None where it would take too long.

        Raises:
            DataError: outputs cannot be compared.
        """
        images = 0 if self._trials is None else self._probed()
        if self._trials is None or not images:
            return None
        return Probe(self._trials, self.library.space, self._agreement(images), progress)

    def _agreement(self, most: int) -> Judge:
        """Compares with the original on calibration images."""
        others = other_images(self._calibration, most)
        return make_judge("agreement", others, self.library.model)

    def _probed(self) -> int:
        """On how many images a probe compares; 0 where there is none."""
        if not isinstance(self._score, Judge):
            return HINTED  # nobody knows how long someone else's function takes
        layers = self.library.space.layers
        neighbours = sum(min(2, len(layer.choices) - 1) for layer in layers)
        # no more is read of the validation data than it takes to know
        judged = _images(self._score.batches, neighbours * MOST / WORTH)
        others = _images(other_images(self._calibration, MOST))
        return affordable(neighbours, _images(self._few), judged, others)

    def __call__(self, architecture: Architecture) -> float:
        """The score of an architecture."""
        if self._trials is not None:
            return self._trials(architecture)
        model = self.build(architecture)
        if self._recipes.epochs:
            return kept_score(self.tuned(model, self._recipes.epochs)[1], self._recipes.keep)
        return as_number(self._score(model))

    @property
    def compares(self) -> bool:
        """Whether a candidate is compared with a better one, and given up where it is hopeless."""
        return self._trials is not None and isinstance(self._score, Judge)

    def compare_with(self, standard: Standard | None) -> None:
        """From now on candidates are compared with this, and not with the best one so far."""
        if self._trials is not None:
            self._trials.compare_with(standard)

    @property
    def seen(self) -> Tensor | None:
        """The values of all images for the last candidate, where it was shown all of them."""
        return None if self._trials is None else self._trials.seen

    @property
    def most(self) -> int | None:
        """Images that are shown at once at most, once memory has run out; None before."""
        return None if self._trials is None else self._trials.most

    def heard(
        self, architecture: Architecture, images: int, given_up: int | None, most: int | None
    ) -> None:
        """Takes over what a candidate came to that was scored elsewhere.

        Args:
            architecture: of the candidate.
            images: that it was shown.
            given_up: after how many images, if it was.
            most: as the attribute of that name, there.
        """
        if self._trials is None:
            return
        self._trials.images += images
        if given_up is not None:
            self._trials.given_up[architecture] = given_up
        known = [m for m in (self._trials.most, most) if m is not None]
        self._trials.most = min(known, default=None)

    @property
    def images(self) -> int:
        """How many images candidates were shown so far; 0 where they are not shown one by one."""
        return 0 if self._trials is None else self._trials.images

    @property
    def note(self) -> str:
        """What a reader should know about how candidates are scored; empty where nothing."""
        most = self.most
        return "" if most is None else f"out of memory: images are shown {most} at a time"

    def given_up(self, architecture: Architecture) -> int | None:
        """After how many images a candidate was given up; None where it was not."""
        return None if self._trials is None else self._trials.given_up.get(architecture)

    def build(self, architecture: Architecture) -> nn.Module:
        """The network from the library or cut, with BatchNorm statistics of its own."""
        if self._recipes.refit:
            model = self.library.build(architecture)
        else:
            cut = materialise(self.library.model, self.library.space, architecture)
            model = cut.eval().requires_grad_(False)
        recalibrate(model, self._calibration)
        return model

    def finish(
        self, architecture: Architecture, progress: Progress = silent
    ) -> tuple[nn.Module, float]:
        """The network as well as it gets without training, and its score.

        It is refitted once more, all layers in sequence, on all calibration images. Whether
        BatchNorm statistics of its own help after that differs from network to network, so the
        score decides. A form that it scores as NaN or infinite is left out.

        Raises:
            DataError: the score raises, or is finite for none of them.
        """
        plain = self.build(architecture)
        if not self._recipes.refit:
            return self._best([plain])
        refitted = self.library.build(architecture)
        refitter = Refitter(
            self.library.model, self.library.space, self._example, self._calibration
        )
        refitter.whole(refitted, architecture, progress)
        corrected = copy.deepcopy(refitted)
        recalibrate(corrected, self._calibration)
        return self._best([refitted, corrected, plain])

    def _best(self, models: Sequence[nn.Module]) -> tuple[nn.Module, float]:
        """The best of some forms of the network that was found; among equals the first."""
        which = "the network that was found"
        scored = [(model, attempt(self._score, model, which)) for model in models]
        finite = [pair for pair in scored if math.isfinite(pair[1])]
        if not finite:
            raise DataError(
                f"the score must return a finite number, but for {which} it returned {scored[0][1]}"
            )
        return max(finite, key=lambda pair: pair[1])

    def tuned(
        self, model: nn.Module, epochs: int, progress: Progress = silent
    ) -> tuple[nn.Module, tuple[float, ...]]:
        """A fine-tuned copy, and its score before and after each epoch.

        Without training data the calibration batches serve: the teacher's answers need no labels.
        """
        learner = self.learner(model, epochs)
        learner.learn(epochs, progress)
        return learner.kept(), learner.scores

    def learner(self, model: nn.Module, epochs: int) -> Learner:
        """What `tuned` trains with, for whoever does it some epochs at a time."""
        batches = self._calibration if self._training is None else self._training
        recipe = Recipe(epochs, seed=self._recipes.seed, keep=self._recipes.keep)
        return Learner(model, self.library.model, batches, self._score, recipe)


def _like(
    library: LayerLibrary,
    example: Inputs,
    calibration: Batches,
    score: Score,
    recipes: Recipes,
    training: Batches | None,
) -> Scorer:
    return Scorer(library, example, calibration, score, recipes, training=training)


def _images(batches: Batches, enough: float = math.inf) -> int:
    """How many inputs there are; counted until there are enough."""
    count = 0
    for batch in batches:
        if count >= enough:
            break
        count += size_of(split(batch)[0])
    return count
