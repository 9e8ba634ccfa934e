"""`Task`: a network, what it is for, and which part of it is its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

from compressor.errors import CompressorError, DataError, UsageError
from compressor.multitask.augmenting import Augment
from compressor.network.data import Batches, as_inputs, device_of, on, part_of, split
from compressor.network.folding import folded
from compressor.score.evaluate import Score

Loss: TypeAlias = Callable[[nn.Module], float]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


@dataclass(frozen=True)
class Task:
    """One of several tasks whose networks share an encoder architecture.

    Attributes:
        name: of the task, and of its folder: letters, digits, `-` and `_`.
        model: its pretrained network; not touched.
        calibration: batches of inputs, with or without targets.
        head: path of the module that is the task's own, or paths of several; all else of the
            network is the encoder, and all tasks name its parts alike.
        validation: batches that judge: inputs, or (inputs, integer targets).
        training: batches for fine-tuning; without, the calibration batches serve.
        score: what is reported: "top1", "loss" or "agreement" on `validation`, or
            `score(model) -> float`, higher is better; as in `compressor.compress`.
        loss: what the search goes by: `loss(model) -> float`, lower is better, above 0 for the
            original. Without, the mean cross-entropy on `validation`, which then needs integer
            targets.
        importance: weight of the task's normalised loss, above 0.
        example: inputs that the network accepts; without, the first calibration input.
        augment: changes inputs at random, for transfer by matching: called with the tensors
            `[N, …]` of a batch, it returns tensors of the same shapes. Without, see
            `compressor.multitask.augmenting.augmented`.
    """

    name: str
    model: nn.Module
    calibration: Batches
    head: str | Sequence[str]
    validation: Batches | None = None
    training: Batches | None = None
    score: Score | str | None = None
    loss: Loss | None = None
    importance: float = 1.0
    example: Any = None
    augment: Augment | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        """Paths of all modules that are the task's own."""
        return (self.head,) if isinstance(self.head, str) else tuple(self.head)

    def in_head(self, name: str) -> bool:
        """Whether a module, a tensor or a call of this name belongs to the head."""
        return any(name == head or name.startswith((f"{head}.", f"{head}@")) for head in self.heads)


@contextmanager
def telling(task: Task) -> Iterator[None]:
    """Puts the task's name before what goes wrong with it."""
    try:
        yield
    except CompressorError as error:
        raise type(error)(f"task {task.name!r}: {error}") from error


def checked_tasks(tasks: Any) -> tuple[Task, ...]:
    """The tasks, folded and with an example each, once what can be told without work holds.

    Raises:
        UsageError: fewer than two, two of one name, or a name, head or importance that cannot be.
        DataError: a model is no network, or the calibration data holds nothing.
    """
    given = tuple(tasks) if isinstance(tasks, list | tuple) else ()
    if len(given) < 2 or not all(isinstance(task, Task) for task in given):
        kinds = ", ".join(type(task).__name__ for task in given) or type(tasks).__name__
        raise UsageError(
            f"several tasks are a list of two or more compressor.Task, but got {kinds}; for one "
            "network use compress"
        )
    names = [task.name for task in given]
    for task in given:
        if not isinstance(task.name, str) or not _NAME.fullmatch(task.name):
            raise UsageError(
                "a task's name is that of its folder: letters, digits, - and _, but got "
                f"{task.name!r}"
            )
        if names.count(task.name) > 1:
            raise UsageError(f"tasks have different names, but got {task.name!r} twice; rename one")
    if len({name.lower() for name in names}) < len(names):
        raise UsageError(
            f"tasks differ in more than upper and lower case, but got {', '.join(names)}"
        )
    return tuple(_checked(task) for task in given)


def _checked(task: Task) -> Task:
    with telling(task):
        if not isinstance(task.model, nn.Module):
            raise DataError(f"the model must be a torch.nn.Module, got {type(task.model).__name__}")
        if not (math.isfinite(task.importance) and task.importance > 0):
            raise UsageError(f"the importance must be above 0, but got {task.importance}")
        if task.loss is None and task.validation is None:
            raise UsageError(
                "the search goes by the loss on validation data, but there is none; give "
                "validation batches with integer targets, or loss(model) -> float"
            )
        _require_heads(task)
        return replace(task, model=folded(task.model), example=_example(task))


def _require_heads(task: Task) -> None:
    paths = {name for name, _ in task.model.named_modules() if name}
    for head in task.heads or ("",):
        if head not in paths:
            children = ", ".join(name for name, _ in task.model.named_children())
            raise UsageError(
                f"the head must be the path of a module of the network, but got {head!r}; its "
                f"parts are {children or 'none'}"
            )


def _example(task: Task) -> Any:
    if task.example is not None:
        return on(device_of(task.model), as_inputs(task.example))
    first = next(iter(task.calibration), None)
    if first is None:
        raise DataError("calibration data must hold at least one batch, but is empty")
    return on(device_of(task.model), part_of(split(first)[0], slice(0, 1)))
