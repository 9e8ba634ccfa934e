"""Whether a stored search space is one of a model, before anything is made of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from compressor.coupling import Coupling
from compressor.errors import ArchitectureError
from compressor.network.structure import named_tensors
from compressor.space import ChannelGroup, Choice, KernelCut, SearchSpace


def require_fit(space: SearchSpace, model: nn.Module) -> None:
    """Returns if every number of the space lies within the model's own tensors.

    A space from a file may come from anybody; a few digits of it could ask for more memory than
    there is.

    Raises:
        ArchitectureError: the space is not of this model; the message names the layer.
    """
    tensors = named_tensors(model)
    for layer in space.layers:
        try:
            if layer.group is not None:
                _require_group(layer.group, layer.choices, tensors)
            if layer.kernel is not None:
                _require_kernel(layer.kernel, tensors)
        except ValueError as error:
            raise ArchitectureError(
                f"the search layer {layer.name!r:.80} is not of this model: {error}"
            ) from error


def _require_group(
    group: ChannelGroup, choices: Sequence[Choice], tensors: Mapping[str, Tensor]
) -> None:
    if any((choice.channels or 0) > group.width for choice in choices):
        raise ValueError(f"a choice keeps more than {group.width} channels")
    units = len(group.order)
    if sorted(group.order) != list(range(units)) or units * group.per_unit != group.width:
        raise ValueError(f"{units} units of {group.per_unit} are no order of {group.width}")
    places = [(coupling.tensor, coupling.dim) for coupling in group.couplings]
    if len(set(places)) < len(places):
        raise ValueError("a dimension is cut twice")
    for coupling in group.couplings:
        _require_coupling(coupling, units, tensors)


def _require_coupling(coupling: Coupling, units: int, tensors: Mapping[str, Tensor]) -> None:
    shape = _shape(coupling.tensor, tensors)
    size = shape[coupling.dim] if 0 <= coupling.dim < len(shape) else 0
    taken = 0
    for run in coupling.index.runs:
        ends = (run.offset, run.offset + (run.units - 1) * run.step)
        taken += run.units * run.length
        inside = min(ends) >= 0 and max(ends) + run.length <= size
        if min(run.units, run.length) < 1 or run.first < 0 or not inside or taken > size:
            raise ValueError(f"{run} is not within dimension {coupling.dim} of {shape}")
        if run.first + run.units > units:
            raise ValueError(f"{run} is of more than {units} units")


def _require_kernel(cut: KernelCut, tensors: Mapping[str, Tensor]) -> None:
    shape = _shape(cut.tensor, tensors)
    if len(shape) - 2 != cut.spatial or any(edge != cut.kernel for edge in shape[2:]):
        raise ValueError(f"a kernel of {cut.spatial} times {cut.kernel} is none of {shape}")


def _shape(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"it names the tensor {name!r:.80}, which this model does not have")
    return tuple(tensors[name].shape)
