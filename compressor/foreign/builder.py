"""Collects the steps, modules and tensors of a network while a file is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compressor.errors import TargetError
from compressor.foreign.layers import Layer
from compressor.foreign.steps import (
    Held,
    Plan,
    Step,
    StepNetwork,
    Value,
    identifiers,
    leaves,
    taking,
)


class Builder:
    """A network in the making.

    Attributes:
        tensors: all that the file holds, by name; a tensor of two names is one tensor.
        learnt: names of the parameters among them.
        turned: values that are a transposed tensor of the file, and which.
    """

    def __init__(self, tensors: Mapping[str, Tensor], learnt: frozenset[str]) -> None:
        shared: dict[int, Tensor] = {}
        self.tensors = {
            name: shared.setdefault(id(t), _learnt(t) if name in learnt else t)
            for name, t in tensors.items()
        }
        self.learnt = learnt
        self.turned: dict[str, str] = {}
        self._steps: list[Step] = []
        self._modules: dict[str, nn.Module] = {}
        self._keys: dict[str, tuple[Any, ...]] = {}
        self._owned: set[str] = set()

    def add(self, name: str, tensor: Tensor, *, learnt: bool) -> None:
        """Another tensor that the network holds."""
        self.tensors[name] = _learnt(tensor) if learnt else tensor
        if learnt:
            self.learnt |= {name}

    def module(self, path: str) -> nn.Module:
        """The module that was made for a path."""
        return self._modules[path]

    def call(
        self,
        outs: Sequence[str],
        target: str | Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        several: bool = False,
    ) -> None:
        """Adds a call."""
        self._steps.append(Step(tuple(outs), target, tuple(args), dict(kwargs or {}), several))

    def layer(self, path: str, layer: Layer) -> bool:
        """Makes a module under a path, or finds the equal one that is there.

        Returns:
            Whether there is such a module now: another one may have the path.
        """
        if path not in self._keys:
            self._keys[path] = layer.key
            self._modules[path] = layer.module()
            self._owned.update(f"{path}.{leaf}" for leaf in layer.tensors)
        return self._keys[path] == layer.key

    def network(self, inputs: Sequence[str], outputs: Sequence[Value | Held]) -> StepNetwork:
        """The network, in evaluation mode, without what is not read.

        Raises:
            TargetError: two things have the same name, or a name cannot be a module's.
        """
        plan = Plan(tuple(inputs), tuple(self._steps), tuple(outputs)).without_idle()
        called = {step.target for step in plan.steps}
        read = [*leaves([(s.args, s.kwargs) for s in plan.steps]), *plan.outputs]
        names = {leaf.name for leaf in read if isinstance(leaf, Held)}
        try:
            made = StepNetwork(plan, {p: m for p, m in self._modules.items() if p in called})
            idle = {p for p in self._modules if p not in called}
            for name in sorted(names):
                if name not in self._owned or name.rpartition(".")[0] in idle:
                    made.hold(name, self.tensors[name], learnt=name in self.learnt)
        except (KeyError, TypeError, AttributeError) as error:
            raise TargetError(f"the names in the file must fit together, but: {error}") from error
        made.__class__ = taking(StepNetwork, identifiers(plan.inputs))  # type: ignore[assignment]
        return made.eval()


def _learnt(tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
