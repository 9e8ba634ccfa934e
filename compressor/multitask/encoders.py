"""What the encoders of several networks have in common: modules, tensors and search layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from torch import Tensor

from compressor.cost import SizeTable, madds_table, params_table
from compressor.coupling import Role
from compressor.deploy.agreement import batched
from compressor.errors import AdapterError
from compressor.multitask.task import Task
from compressor.network.counting import Count, single
from compressor.network.verify import verify_space
from compressor.progress import Progress, silent
from compressor.refit.consumers import only_sliced
from compressor.run.reading import Reading, read_network
from compressor.space import Frozen, SearchLayer, SearchSpace

_OF_HEAD = "it belongs to the head, which stays as it is"


def require_same_encoders(tasks: Sequence[Task]) -> None:
    """Raises `AdapterError`, naming the first difference, unless all encoders are built alike.

    Compared are inputs, modules (path, class and settings) and tensors (name, type and shape).
    """
    first = tasks[0]
    for other in tasks[1:]:
        for one, two in zip_longest(_parts(first), _parts(other)):
            if one != two:
                raise AdapterError(
                    "tasks must share one encoder, but the first difference is: "
                    f"{first.name!r} has {one or 'nothing more'}, {other.name!r} has "
                    f"{two or 'nothing more'}; correct it, or name the parts that differ as heads"
                )
    if not any(part.startswith("the tensor") for part in _parts(first)):
        raise AdapterError(
            f"tasks must share an encoder, but all weights of {first.name!r} belong to its head "
            f"{', '.join(map(repr, first.heads))}; name a smaller part as the head"
        )


def _parts(task: Task) -> Iterator[str]:
    for place, (tensor, carries) in enumerate(
        zip(task.example, batched(task.example), strict=True)
    ):
        sizes = list(tensor.shape[1:]) if carries else f"{list(tensor.shape)} without a batch"
        yield f"input {place} of {tensor.dtype} {sizes}"
    for name, module in task.model.named_modules():
        if name and not task.in_head(name):
            yield f"the module {name!r}: {type(module).__name__}({module.extra_repr()})"
    for name, tensor in task.model.state_dict().items():
        if isinstance(tensor, Tensor) and not task.in_head(name):
            yield f"the tensor {name!r} of {tensor.dtype} {list(tensor.shape)}"


def read_shared(
    tasks: Sequence[Task], adapter: str = "generic", progress: Progress = silent
) -> tuple[Reading, ...]:
    """Reads every network and keeps the search layers that all encoders share, in one order.

    The encoders must be alike (`require_same_encoders`). A layer is shared where each network
    proves it with the same choices, the same kernel and the same channels of the encoder. What of
    the head reads these channels shrinks with them; all else of a head stays as it is. What is
    left is proved on each network once more.

    Raises:
        AdapterError: a network cannot be read.
        DataError: a model does not run on its example.
    """
    readings = [read_network(t.model, t.example, adapter, progress) for t in tasks]
    while True:
        spaces = _shared([r.space for r in readings], tasks)
        proved = [
            verify_space(t.model, t.example, s, progress)
            for t, s in zip(tasks, spaces, strict=True)
        ]
        readings = [_narrowed(r, t, s) for r, t, s in zip(readings, tasks, proved, strict=True)]
        if all(p.layers == s.layers for p, s in zip(proved, spaces, strict=True)):
            return tuple(readings)


def _shared(spaces: Sequence[SearchSpace], tasks: Sequence[Task]) -> list[SearchSpace]:
    """Each task's space without the layers that are not every encoder's."""
    known = [{layer.name: layer for layer in space.layers} for space in spaces]
    reasons = [{f.name: f.reason for f in space.frozen} for space in spaces]
    kept: list[str] = []
    gone: dict[str, str] = {}
    for name in dict.fromkeys(layer.name for space in spaces for layer in space.layers):
        why = ""
        for task, layers, frozen in zip(tasks, known, reasons, strict=True):
            layer = layers.get(name)
            if layer is None:
                why = (
                    why or f"task {task.name!r} has no such layer: {frozen.get(name, 'no reason')}"
                )
            elif not _of_encoder(layer, task):
                why = _OF_HEAD
        forms = [_form(x[name], t) for x, t in zip(known, tasks, strict=True) if name in x]
        if not why and any(form != forms[0] for form in forms):
            why = "its choices or channels are not the same in all tasks"
        if why:
            gone[name] = why
        else:
            kept.append(name)
    return [
        SearchSpace(
            tuple(layers[name] for name in kept),
            (*space.frozen, *(Frozen(n, gone[n]) for n in layers if n in gone)),
        )
        for space, layers in zip(spaces, known, strict=True)
    ]


def _of_encoder(layer: SearchLayer, task: Task) -> bool:
    made = (
        [c.tensor for c in layer.group.couplings if c.role is Role.PRODUCED] if layer.group else []
    )
    return not any(map(task.in_head, (layer.name, *made)))


def _form(layer: SearchLayer, task: Task) -> tuple[Any, ...]:
    """What must be the same in all tasks; orders of channels are not."""
    group = layer.group
    inner = group and (
        group.width,
        group.per_unit,
        sorted(
            (c.tensor, c.dim, c.role.value, c.index.to_json())
            for c in group.couplings
            if not task.in_head(c.tensor)
        ),
    )
    return layer.choices, layer.kernel, inner


def _narrowed(reading: Reading, task: Task, space: SearchSpace) -> Reading:
    count = reading.count
    return replace(
        reading,
        space=space,
        madds=madds_table(space, count.tensors, products=count.products),
        params=params_table(space, count.tensors),
        sliced=only_sliced(task.model, space, single(task.example)),
    )


def encoder_tables(reading: Reading, task: Task) -> dict[str, SizeTable]:
    """MAdds and parameters of the encoder alone, of any architecture.

    Products between two activations have no place in a module; they count as the encoder's.
    """
    count: Count = reading.count
    tensors = [t for t in count.tensors if not task.in_head(t.name)]
    products = [p for p in count.products if not (p.of and task.in_head(p.of))]
    return {
        "madds": madds_table(reading.space, tensors, products=products),
        "params": params_table(reading.space, tensors),
    }
