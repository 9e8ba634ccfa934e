"""Fine-tuning with the original network as teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from compressor.errors import CheckError, DataError
from compressor.network.counting import evaluating
from compressor.network.data import Batches, Inputs, device_of, keep, on, split
from compressor.progress import Event, Progress, silent
from compressor.score.evaluate import Score, attempt


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training data.
        learning_rate: peak of a linear warm-up followed by a cosine to zero (AdamW).
        temperature: softens both distributions (Hinton et al., arXiv 1503.02531, section 2).
        teacher_share: weight of the teacher's answer against the targets, where there are any.
        seed: of dropout and whatever else draws numbers in training mode.
        keep: "best" keeps the epoch that scores best, or the network before; "last" the last
            epoch, for a score on data that the original was trained on: such data makes the
            network look better before fine-tuning than it is.
    """

    epochs: int
    learning_rate: float = 3e-4
    temperature: float = 2.0
    teacher_share: float = 0.7
    seed: int = 0
    keep: str = "best"


Term: TypeAlias = Callable[[nn.Module, Inputs, Tensor], Tensor]
"""Called in every step with the student in training mode, the inputs that it was just called with,
and the loss; returns the loss to go down. Gradients that it leaves in the parameters are added."""

_WARM_UP = 0.1  # share of all steps
_LARGEST_GRADIENT = 5.0


def fine_tune(
    model: nn.Module,
    teacher: nn.Module,
    training: Batches,
    score: Score,
    recipe: Recipe,
    progress: Progress = silent,
) -> tuple[nn.Module, tuple[float, ...]]:
    """Trains a copy of the network to answer like the teacher; `recipe.keep` says what is kept.

    Args:
        model: the network to start from; not touched.
        teacher: the original network; not touched.
        training: batches; integer targets `[N]` are used where there are any, and where the
            output is logits `[N, classes]`. Other outputs are matched value by value.
        score: judges each epoch, higher is better.
        recipe: the settings.
        progress: told after each epoch.

    Returns:
        The network that is kept, in evaluation mode, and the score before and after each epoch;
        see `kept_score`. What scores no number is never kept, the network before excepted.

    Raises:
        CheckError: the loss stopped being a number.
        DataError: there is no training batch, or one does not fit the network.
    """
    learner = Learner(model, teacher, training, score, recipe)
    learner.learn(recipe.epochs, progress)
    return learner.kept(), learner.scores


class Learner:
    """A copy of a network that is trained to answer like a teacher, some epochs at a time.

    The recipe's schedule, the optimizer and the stream of random numbers go on from one call of
    `learn` to the next: epochs in several goes are the same training as all of them in one.

    Attributes:
        student: the copy, in evaluation mode, as the last epoch left it.
        teacher: the original network; not touched.
        training: the batches.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        training: Batches,
        score: Score,
        recipe: Recipe,
    ) -> None:
        """Scores the network as it is; the arguments are those of `fine_tune`."""
        self.student = copy.deepcopy(model).eval().requires_grad_(True)
        self.teacher = teacher
        self._score, self._recipe = score, recipe
        self._scores = [attempt(score, self.student, "the network before fine-tuning")]
        self._best = copy.deepcopy(self.student.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.training = keep(training, "training data")
            steps = _count(self.training) * recipe.epochs
            self._random = torch.get_rng_state()
        self._optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=recipe.learning_rate, weight_decay=1e-4
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _rate(step, steps)
        )

    @property
    def scores(self) -> tuple[float, ...]:
        """Before the first epoch and after each."""
        return tuple(self._scores)

    def learn(self, epochs: int, progress: Progress = silent, term: Term | None = None) -> None:
        """Trains for so many of the recipe's epochs; `fine_tune` says what is raised.

        Args:
            epochs: all calls together at most the recipe's.
            progress: told after each epoch.
            term: what is learnt besides.
        """
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            for _ in range(epochs):
                self._train_epoch(term)
                self._judge(progress)
            self._random = torch.get_rng_state()

    def kept(self) -> nn.Module:
        """The network that `recipe.keep` says, a copy in evaluation mode."""
        kept = copy.deepcopy(self.student)
        kept.load_state_dict(self._best)
        return kept.eval().requires_grad_(False)

    def _judge(self, progress: Progress) -> None:
        scores, student, total = self._scores, self.student, self._recipe.epochs
        epoch = len(scores)
        scores.append(attempt(self._score, student.eval(), f"the network after epoch {epoch}"))
        last = self._recipe.keep == "last" and not math.isnan(scores[-1])
        if last or _better(scores, first_may_tie=epoch == 1):
            self._best = copy.deepcopy(student.state_dict())
        note = f"score {scores[-1]:.4f}, best {best_score(scores):.4f}"
        progress(Event("fine-tune", epoch, total, note))

    def _train_epoch(self, term: Term | None) -> None:
        student, recipe = self.student.train(), self._recipe
        for batch in self.training:
            inputs, targets = split(batch)
            inputs = on(device_of(student), inputs)
            self._optimizer.zero_grad(set_to_none=True)
            try:
                loss = _loss(student(*inputs), _answers(self.teacher, inputs), targets, recipe)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise _unfit(inputs, targets, error) from error
            if term is not None:
                loss = term(student, inputs, loss)
            if not torch.isfinite(loss):
                raise CheckError(
                    f"fine-tuning diverged: the loss became {loss.item()}; check the training data "
                    f"for values that are not numbers, or lower the learning rate "
                    f"({recipe.learning_rate:g})"
                )
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(student.parameters(), _LARGEST_GRADIENT)
            self._optimizer.step()
            self._schedule.step()


def kept_score(scores: Sequence[float], keep: str) -> float:
    """The score of what `fine_tune` returns; NaN where none is a number."""
    numbers = [score for score in scores if not math.isnan(score)]
    return numbers[-1] if keep == "last" and numbers else best_score(scores)


def best_score(scores: Sequence[float]) -> float:
    """The largest that is a number; NaN where none is."""
    return max((s for s in scores if not math.isnan(s)), default=math.nan)


def _better(scores: Sequence[float], *, first_may_tie: bool) -> bool:
    """Whether the last epoch is the one to keep; at a tie, one trained epoch beats none."""
    before = best_score(scores[:-1])
    if math.isnan(before):
        return not math.isnan(scores[-1])
    return scores[-1] > before or (first_may_tie and scores[-1] == before)


def _unfit(inputs: Inputs, targets: Tensor | None, error: Exception) -> DataError:
    shapes = ", ".join(str(list(t.shape)) for t in inputs)
    wanted = "" if targets is None else f" and targets {targets.dtype} {list(targets.shape)}"
    return DataError(
        f"training batches must fit the network, but with inputs of the shapes {shapes}{wanted} a "
        f"training step raised {type(error).__name__}: {error}"
    )


def _answers(teacher: nn.Module, inputs: Inputs) -> Any:
    with evaluating(teacher), torch.no_grad():
        return teacher(*inputs)


def _loss(output: Any, answer: Any, targets: Tensor | None, recipe: Recipe) -> Tensor:
    outputs, answers = _floats(output), _floats(answer)
    if _are_logits(outputs, targets):
        logits, wanted = outputs[0], answers[0]
        heat = recipe.temperature
        distilled = heat**2 * functional.kl_div(
            functional.log_softmax(logits / heat, dim=1),
            functional.log_softmax(wanted / heat, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        if targets is None or targets.dim() != 1:
            return distilled
        labelled = functional.cross_entropy(logits, targets.to(logits.device))
        return recipe.teacher_share * distilled + (1 - recipe.teacher_share) * labelled
    # Anything else is matched value by value, each output relative to its own spread.
    return torch.stack(
        [
            functional.mse_loss(o, a) / (a.var(unbiased=False) + 1e-8)
            for o, a in zip(outputs, answers, strict=True)
        ]
    ).sum()


def _are_logits(outputs: Sequence[Tensor], targets: Tensor | None) -> bool:
    """One output `[N, classes]`; not a regression's, which a softmax would lose."""
    regression = targets is not None and targets.is_floating_point()
    return (
        len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1 and not regression
    )


def _floats(output: Any) -> Sequence[Tensor]:
    found = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    if not found:
        raise DataError(
            f"fine-tuning needs a model that returns tensors, but it returned "
            f"{type(output).__name__}; use --finetune 0"
        )
    return found


def _rate(step: int, steps: int) -> float:
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def _count(batches: Batches) -> int:
    known = length_hint(batches, -1)
    return known if known >= 0 else sum(1 for _ in batches)
