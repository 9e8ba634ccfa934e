"""Scores that are means over images: top-1, loss, and agreement with the original network.

A score that is known image by image can be stopped early, and the passes of candidates with the
same first layers can be shared; a user's own function cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import DataError, UsageError
from compressor.network.counting import evaluating, forward
from compressor.network.data import Batches, device_of, on, split

TEMPERATURE = 3.0
"""At temperature 1 the divergence of two networks is that of a few images on which the original is
very sure. At this one the same images tell networks apart more surely, and in an order that is
closer to that of their accuracy on other images (`python -m benchmarks.temperatures`)."""

_Values = Callable[[Any, "Tensor | None", Any, float], Tensor]


@dataclass(frozen=True)
class Judge:
    """A score of networks: the mean over all images of one value for each; higher is better.

    Attributes:
        name: "top1": 1 where the largest logit is the target's, else 0. "loss": minus the
            cross-entropy with the target. "agreement": minus the Kullback-Leibler divergence
            from the original's class probabilities, in nats, both softened by the temperature, for
            logits `[N, classes]`; for any other output minus the squared difference from the
            original's, as a share of its square. It needs no labels, and 0 is identical.
        batches: validation data.
        references: the original's output for each batch, on the CPU; empty where it is not
            compared with.
        temperature: softens the class probabilities that "agreement" compares.
    """

    name: str
    batches: Batches
    references: tuple[Any, ...] = ()
    temperature: float = TEMPERATURE

    @property
    def perfect(self) -> float:
        """The score that nothing exceeds."""
        return 1.0 if self.name == "top1" else 0.0

    def __call__(self, model: nn.Module) -> float:
        """The score of a network, in evaluation mode; its modes come back."""
        found = []
        with evaluating(model):
            for number, inputs, targets in self.inputs(device_of(model)):
                found.append(self.values(number, forward(model, inputs), targets))
        if not found:
            raise DataError("validation data must hold at least one batch, but is empty")
        return float(torch.cat(found).mean())

    def inputs(self, device: torch.device) -> Iterator[tuple[int, tuple[Tensor, ...], Any]]:
        """Number, inputs and targets of each batch."""
        for number, batch in enumerate(self.batches):
            inputs, targets = split(batch)
            yield number, on(device, inputs), targets

    def values(
        self, number: int, outputs: Any, targets: Tensor | None, part: slice | None = None
    ) -> Tensor:
        """One value for each image of a batch, `[N]`, float64, on the CPU.

        Args:
            number: of the batch.
            outputs: the network's answer to it.
            targets: of the same images, if there are any.
            part: the images of the batch that were shown; None for all of them.

        Raises:
            DataError: the outputs or the targets do not fit this score.
        """
        reference = self.references[number] if self.references else None
        if part is not None:
            reference = tree_map(lambda x: x[part] if isinstance(x, Tensor) else x, reference)
        with torch.no_grad():
            found = _VALUES[self.name](outputs, targets, reference, self.temperature)
        return found.double().cpu()


def top1(model: nn.Module, validation: Batches) -> float:
    """Share of validation images whose largest logit is the target, in 0..1.

    Args:
        model: returns logits `[N, classes]`; not touched.
        validation: batches with integer targets `[N]`.

    Raises:
        DataError: the output is no logits, or targets are missing or of another length.
    """
    return Judge("top1", validation)(model)


def make_judge(
    name: str | None,
    validation: Batches,
    original: nn.Module,
    temperature: float = TEMPERATURE,
) -> Judge:
    """A judge by name; without one, top-1 where there are labels and agreement where not.

    Raises:
        UsageError: there is no such score.
        DataError: it needs labels, and there are none; or the output is not what it reads.
    """
    if name is None:
        name = "agreement" if split(next(iter(validation)))[1] is None else "top1"
    if name not in _VALUES:
        raise UsageError(f"the score must be one of {', '.join(_VALUES)}, but got {name!r}")
    references: tuple[Any, ...] = ()
    if name == "agreement":
        with evaluating(original):
            plain = Judge(name, validation).inputs(device_of(original))
            references = tuple(_stored(forward(original, inputs)) for _, inputs, _ in plain)
    return Judge(name, validation, references, temperature)


def _stored(output: Any) -> Any:
    """On the CPU: outputs for the whole validation set may not fit beside a network on a GPU."""
    return tree_map(lambda x: x.detach().cpu() if isinstance(x, Tensor) else x, output)


def _top1(outputs: Any, targets: Tensor | None, _: Any, __: float) -> Tensor:
    logits, labels = _classified("top-1", outputs, targets)
    return logits.argmax(dim=1) == labels


def _loss(outputs: Any, targets: Tensor | None, _: Any, __: float) -> Tensor:
    logits, labels = _classified("loss", outputs, targets)
    return -functional.cross_entropy(logits.double(), labels.long(), reduction="none")


def _agreement(outputs: Any, _: Tensor | None, reference: Any, temperature: float) -> Tensor:
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1:
        here = reference.to(outputs.device)
        ours, theirs = ((x.double() / temperature).log_softmax(1) for x in (outputs, here))
        return (theirs.exp() * (ours - theirs)).sum(1)
    pairs = [
        (a.double().reshape(len(a), -1), b.to(a.device).double().reshape(len(b), -1))
        for a, b in zip(tree_leaves(outputs), tree_leaves(reference), strict=True)
        if isinstance(a, Tensor) and a.dim() and a.is_floating_point()
    ]
    lengths = sorted({len(a) for a, _ in pairs})
    if len(lengths) != 1:
        what = type(outputs).__name__
        raise DataError(
            "the agreement with the original network compares tensors [N, …], but the model "
            f"returned {what}{f' with N of {lengths}' if lengths else ''}; define score(model) "
            "-> float, higher is better"
        )
    shares = [(a - b).square().sum(1) / b.square().sum(1).clamp_min(1e-12) for a, b in pairs]
    return 0.0 - torch.stack(shares).mean(0)  # without the sign that -0.0 has


_VALUES: Mapping[str, _Values] = {"top1": _top1, "loss": _loss, "agreement": _agreement}


def _classified(name: str, outputs: Any, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    remedy = 'use the score "agreement", or define score(model) -> float, higher is better'
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(
            f"the {name} score reads logits [N, classes], but the model returned {got}; {remedy}"
        )
    if targets is None:
        raise DataError(
            f"the {name} score needs (inputs, targets) batches, but validation data "
            f"holds inputs alone; add targets, {remedy}"
        )
    if targets.dim() != 1 or targets.shape[0] != outputs.shape[0] or targets.is_floating_point():
        raise DataError(
            f"the {name} score needs integer targets [{outputs.shape[0]}], but got "
            f"{targets.dtype} {list(targets.shape)}; {remedy}"
        )
    return outputs, targets.to(outputs.device)
