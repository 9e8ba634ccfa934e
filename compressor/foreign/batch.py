"""Batch sizes that a file has written into it, made free where that can be proved right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compressor.errors import TargetError
from compressor.foreign.steps import OfBatch, Plan, Step, StepNetwork, Value, leaves
from compressor.network.outputs import output_tensors

_TOLERANCE = 1e-4  # of the outputs' scale; a batch that is mixed up moves them by their scale


def freed(network: StepNetwork, example: tuple[Tensor, ...]) -> bool:
    """Makes a network take any number of inputs, if it can be made to; else it stays as it is.

    A size in front that the file writes out is worked out from the others, or goes with the
    batch. It is right where three inputs at once, all different, give what each gives alone.

    Args:
        network: changed in place.
        example: inputs of the batch size that the file was written with.

    Returns:
        Whether it takes any number of inputs now.
    """
    batch = example[0].shape[0] if example and example[0].dim() else 0
    written = network.plan
    if not batch:
        return False
    for change in (None, _moved, _created):
        network.plan = written if change is None else _changed(written, batch, change)
        if _free(network, example, batch):
            return True
    network.plan = written
    return False


def run(network: StepNetwork, example: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a network.

    Raises:
        TargetError: it does not run.
    """
    try:
        with torch.no_grad():
            return output_tensors(network(*example))
    except Exception as error:  # whatever an operator raises on what a file tells it
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TargetError(
            f"the network in the file must run on its own example, but: {line}; write the file "
            "again, or give the network as a Python target"
        ) from error


def of_size(example: tuple[Tensor, ...], batch: int, size: int) -> tuple[Tensor, ...]:
    """The example repeated or cut to a batch size."""
    return tuple(
        t[torch.arange(size) % t.shape[0]] if t.dim() and t.shape[0] == batch else t
        for t in example
    )


def _free(network: StepNetwork, example: tuple[Tensor, ...], batch: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    three = tuple(_other(t, generator) for t in of_size(example, batch, 3))
    try:
        whole = run(network, three)
        for one in range(3):
            part = tuple(t[one : one + 1] if _carries(t, 3) else t for t in three)
            for all_, alone in zip(whole, run(network, part), strict=True):
                # what is the same for every input has no batch dimension
                mine = all_[one : one + 1] if _carries(all_, 3) else all_
                if mine.shape != alone.shape or not _near(mine, alone):
                    return False
    except TargetError:
        return False
    return any(_carries(t, 3) for t in whole)


def _carries(tensor: Tensor, batch: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == batch


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.double(), other.double()
    scale = float(other.abs().max()) if other.numel() else 0.0
    return bool(((one - other).abs() <= _TOLERANCE * scale).all())


def _other(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Different inputs of the same kind; whole numbers are shuffled, since they may be indices."""
    if tensor.is_floating_point():
        return tensor + torch.randn(tensor.shape, generator=generator).to(tensor)
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.flatten()[order].reshape(tensor.shape)


_Change = Callable[[Step, bool, int], Step]


def _changed(plan: Plan, batch: int, change: _Change) -> Plan:
    """The plan with sizes that follow the batch, in steps that read an input or not."""
    after, steps = set(plan.inputs), []
    for step in plan.steps:
        follows = bool(step.reads & after)
        after |= {*step.outs} if follows else set()
        steps.append(change(step, follows, batch))
    return replace(plan, steps=tuple(steps))


def _moved(step: Step, follows: bool, batch: int) -> Step:
    """Sizes of what is seen in another shape."""
    if step.target is Tensor.reshape and follows:
        return _with_sizes(step, lambda sizes: _in_front(sizes, batch))
    if step.target is Tensor.expand:
        return _with_sizes(step, lambda sizes: _first(sizes, batch))
    return step


def _created(step: Step, follows: bool, batch: int) -> Step:
    """Sizes of tensors that are made, as well."""
    called = getattr(step.target, "overloadpacket", step.target)
    name = getattr(called, "__name__", "")
    if name in ("zeros", "ones", "full", "empty") and step.args:
        sizes = _first(step.args[0], batch)
        return replace(step, args=(sizes, *step.args[1:]))
    if name == "cat" and follows and len(step.args) == 2 and step.args[1] != 0:
        return replace(step, target=joined)
    if name in ("new_zeros", "new_ones", "new_full", "new_empty", "repeat"):
        return _with_sizes(step, lambda sizes: _first(sizes, batch))
    return _moved(step, follows, batch)


def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenates along another dimension than the first; what is there once is for every input.

    Makes the same calls at every batch size: see `compressor.network.sized`.
    """
    most = max(len(t) for t in tensors)
    return torch.cat([t.expand(most, *[-1] * (t.dim() - 1)) for t in tensors], dim)


def _with_sizes(step: Step, change: Callable[[Sequence[Any]], list[Any]]) -> Step:
    source, sizes, *rest = step.args
    return replace(step, args=(source, change(sizes), *rest))


def _in_front(sizes: Sequence[Any], batch: int) -> list[Any]:
    if not sizes or type(sizes[0]) is not int or sizes[0] == -1:
        return list(sizes)
    if _none(sizes[1:]):
        return [-1, *sizes[1:]]
    return [OfBatch(sizes[0] // batch), *sizes[1:]] if not sizes[0] % batch else list(sizes)


def _first(sizes: Sequence[Any], batch: int) -> list[Any]:
    same = bool(sizes) and type(sizes[0]) is int and sizes[0] == batch
    return [OfBatch(1), *sizes[1:]] if same else list(sizes)


def _none(sizes: Iterable[Any]) -> bool:
    """Whether all sizes are numbers, none of them to be worked out."""
    return not any(isinstance(leaf, Value) or leaf == -1 for leaf in leaves(list(sizes)))
