"""Learning in rounds over the tasks, each stage with what the encoder before it knows.

IMTNAS ("Interleaving Multi-Task Neural Architecture Search", OpenReview e3JsfnAi9f), with what its
reviewers missed: every encoder also learns from its own task's loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import DataError, UsageError
from compressor.multitask.embedding import Watch, embedded
from compressor.multitask.matching import Matching, Source
from compressor.multitask.task import Task, telling
from compressor.names import TRANSFERS
from compressor.network.counting import evaluating
from compressor.network.data import Batches, Inputs
from compressor.progress import Event, Progress, silent
from compressor.score.finetune import Learner


@dataclass(frozen=True)
class Rounds:
    """How the tasks' networks learn after the search.

    Attributes:
        rounds: over all tasks; a network's epochs are divided among them as evenly as can be,
            earlier ones first.
        transfer: what passes from the encoder of one stage to that of the next, a name of
            `compressor.names.TRANSFERS`: nothing, which inputs are alike
            (`compressor.multitask.matching`), or its embedding of the task's own inputs.
        weight: of the transfer term beside the task's own loss; 0 turns it off.
        quantile: of matching, the share of pairs that count as similar.
    """

    rounds: int = 1
    transfer: str = "none"
    weight: float = 1.0
    quantile: float = 0.25

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds must be at least 1, but got {self.rounds}")
        if self.transfer not in TRANSFERS:
            raise UsageError(
                f"transfer must be one of {', '.join(TRANSFERS)}, but got {self.transfer!r}"
            )
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"transfer_weight must be a number from 0, but got {self.weight}")
        if not 0 < self.quantile < 1:
            raise UsageError(f"quantile must be between 0 and 1, but got {self.quantile}")

    @property
    def transfers(self) -> bool:
        """Whether anything passes from one encoder to the next."""
        return self.transfer != "none" and self.weight > 0

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells it from the default; settings without effect are left out."""
        found: dict[str, Any] = {}
        if self.rounds > 1:
            found["rounds"] = self.rounds
        if self.transfers:
            found |= {"transfer": self.transfer, "transfer weight": self.weight}
        if self.transfers and self.transfer == "matching":
            found["quantile"] = self.quantile
        return found

    def epochs(self, total: int) -> list[int]:
        """A network's epochs in each round.

        Raises:
            UsageError: there are fewer epochs than rounds, or none while something is to pass.
        """
        if total < self.rounds and (total or self.rounds > 1 or self.transfers):
            raise UsageError(
                f"every round takes at least one epoch of fine-tuning, but with {self.rounds} "
                f"rounds and transfer {self.transfer!r} finetune is {total}; fine-tune longer"
            )
        whole, more = divmod(total, self.rounds)
        return [whole + (number < more) for number in range(self.rounds)]


ONE_ROUND = Rounds()
"""Each network alone, as long as nothing passes from one to the next."""


@dataclass(frozen=True)
class Pupil:
    """A task's network that learns.

    Attributes:
        task: whose it is.
        learner: trains it.
        samples: batches of inputs that transfer draws from.
    """

    task: Task
    learner: Learner
    samples: Batches


@dataclass(frozen=True)
class Learnt:
    """What learning took.

    Attributes:
        epochs: of each network, in each round.
        seconds: of all of it.
        transfer_seconds: of the transfer terms, as a part of it; of matching with its gradients,
            of features without them.
    """

    epochs: tuple[int, ...]
    seconds: float
    transfer_seconds: float


def learn_in_rounds(
    pupils: Sequence[Pupil], epochs: int, how: Rounds, seed: int, progress: Progress = silent
) -> Learnt:
    """Trains all networks, in rounds: in each, one after the other some epochs on its own task.

    A stage's network gets besides the transfer term from the network of the stage before; the very
    first has none. Each network has one schedule over all its rounds, so that without transfer the
    rounds change nothing: no weight belongs to two tasks.

    Args:
        pupils: two or more.
        epochs: of each network, in all rounds together; what its learner was made for.
        how: the rounds, and what passes between them.
        seed: of what transfer draws at random; the networks' own random numbers are the learners'.
        progress: told after each epoch.

    Raises:
        UsageError: there are more rounds than epochs.
        CheckError: a loss stopped being a number; names the task.
        DataError: training data does not fit, or nothing can pass between two tasks; likewise.
    """
    start, spent = perf_counter(), 0.0
    plan = how.epochs(epochs)
    random = torch.Generator().manual_seed(seed)
    previous: Pupil | None = None
    counter = _Counter(len(pupils) * epochs, progress)
    for number, share in enumerate(plan, start=1):
        for pupil in pupils:
            told = counter.told(pupil.task.name, f"round {number} of {how.rounds}")
            with telling(pupil.task), _term(previous, pupil, how, random) as term:
                pupil.learner.learn(share, told, term)
                spent += 0.0 if term is None else term.seconds
            previous = pupil
    return Learnt(tuple(plan), perf_counter() - start, spent)


class _Counter:
    """Epochs of all networks together, for whoever watches."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def told(self, *notes: str) -> Progress:
        def tell(event: Event) -> None:
            self._done += 1
            note = ", ".join((*notes, event.note))
            self._progress(replace(event, done=self._done, total=self._total, note=note))

        return tell


@contextmanager
def _term(
    previous: Pupil | None, pupil: Pupil, how: Rounds, random: torch.Generator
) -> Iterator[Matching | Features | None]:
    """The transfer term of a stage."""
    if previous is None or not how.transfers:
        yield None
        return
    teacher = (previous.learner.student, previous.task.heads)
    if how.transfer == "matching":
        sources = [Source(p.samples, p.task.augment) for p in (previous, pupil)]
        yield Matching(teacher, sources, pupil.task.heads, how.weight, how.quantile, random)
        return
    with Watch(pupil.learner.student, pupil.task.heads) as watch:
        yield Features(teacher, watch, how.weight)


class Features:
    """A term for `compressor.score.finetune.Learner`: weight × distance of two embeddings.

    Plain feature distillation: the student's embedding of its own inputs is drawn to the previous
    encoder's. The distance is the mean squared difference, relative to the variance of the previous
    encoder's.

    Attributes:
        seconds: spent here, without gradients.
    """

    def __init__(
        self, previous: tuple[nn.Module, Sequence[str]], watch: Watch, weight: float
    ) -> None:
        """Takes the network whose encoder teaches with its heads, and what sees the student's."""
        self._previous, self._watch, self._weight = previous, watch, weight
        self.seconds = 0.0

    def __call__(self, student: nn.Module, inputs: Inputs, loss: Tensor) -> Tensor:
        """The loss with the term."""
        del student
        start = perf_counter()
        model, heads = self._previous
        own = self._watch.embedding(inputs)
        with evaluating(model), torch.no_grad():
            other = embedded(model, heads, inputs)
        if own.shape != other.shape:
            raise DataError(
                "transfer by features needs embeddings of one width, but the heads of the task "
                f"before read {other.shape[1]} numbers of an input and those of this task "
                f"{own.shape[1]}; use matching, which compares inputs, or transfer nothing"
            )
        distance = functional.mse_loss(own, other) / (other.var(correction=0) + 1e-8)
        self.seconds += perf_counter() - start
        return loss + self._weight * distance
