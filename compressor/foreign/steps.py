"""A network as a list of calls: what a graph read from a file becomes."""

from __future__ import annotations

import functools
import inspect
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Value:
    """What an earlier step, or an input, gave."""

    name: str


@dataclass(frozen=True)
class Held:
    """A parameter or buffer of the network, by its name."""

    name: str


@dataclass(frozen=True)
class OfBatch:
    """So many times the batch size."""

    factor: int


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        outs: names of what it gives; of several, one for each part, empty where nobody reads it.
        target: a module's path, or a function; a method is a function of `torch.Tensor`.
        args, kwargs: values, or `Value`, `Held` and `OfBatch` for them, in lists too.
        several: whether it gives a tuple or list.
    """

    outs: tuple[str, ...]
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    several: bool = False

    @property
    def reads(self) -> set[str]:
        """Names of the values that it needs."""
        return {leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value)}


@dataclass(frozen=True)
class Plan:
    """All that a `StepNetwork` does.

    Attributes:
        inputs: names of the inputs in order.
        steps: in the order of execution.
        outputs: what it returns: one tensor, or a tuple of all.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Value | Held, ...]

    def __deepcopy__(self, _: object) -> Plan:
        return self  # nothing in it changes

    def last_uses(self) -> list[tuple[str, ...]]:
        """For each step, the values that nobody needs after it."""
        kept = {out.name for out in self.outputs}
        found: list[tuple[str, ...]] = []
        for step in reversed(self.steps):
            over = {*step.reads, *step.outs} - kept - {""}
            found.append(tuple(over))
            kept |= over
        return found[::-1]

    def without_idle(self) -> Plan:
        """Without steps whose results nobody reads; those that write into a tensor stay."""
        needed = {out.name for out in self.outputs}
        kept: list[Step] = []
        for step in reversed(self.steps):
            if needed.intersection(step.outs) or _writes(step):
                needed |= step.reads
                kept.append(step)
        return Plan(self.inputs, tuple(kept[::-1]), self.outputs)


class StepNetwork(nn.Module):
    """Runs a plan; its submodules and parameters bear the names that the file gave them."""

    def __init__(self, plan: Plan, modules: Mapping[str, nn.Module]) -> None:
        """Places each module under its path.

        Args:
            plan: what to run.
            modules: by path; parents that are missing are plain modules without code.
        """
        super().__init__()
        self.plan = plan
        self._over = plan.last_uses()
        for path in sorted(modules, key=lambda p: p.count(".")):
            *parents, leaf = path.split(".")
            self._home(parents).add_module(leaf, modules[path])

    def hold(self, name: str, tensor: Tensor, *, learnt: bool) -> None:
        """Puts a parameter, or where it is not learnt a buffer, under its name."""
        *parents, leaf = name.split(".")
        home = self._home(parents)
        if isinstance(tensor, nn.Parameter):
            home.register_parameter(leaf, tensor)
        elif learnt:
            home.register_parameter(leaf, nn.Parameter(tensor, tensor.is_floating_point()))
        else:
            home.register_buffer(leaf, tensor)

    def _home(self, parents: Sequence[str]) -> nn.Module:
        module: nn.Module = self
        for name in parents:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        return module

    def forward(self, *inputs: Tensor) -> Any:
        """One tensor, or a tuple of them, in the order of the file's outputs."""
        if len(inputs) != len(self.plan.inputs):
            names = ", ".join(self.plan.inputs)
            raise ValueError(f"takes {len(self.plan.inputs)} inputs ({names}), got {len(inputs)}")
        values: dict[str, Any] = dict(zip(self.plan.inputs, inputs, strict=True))
        batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
        for step, over in zip(self.plan.steps, self._over, strict=True):
            out = self._run(step, values, batch)
            if step.several:
                values.update({n: o for n, o in zip(step.outs, out, strict=False) if n})
            else:
                values[step.outs[0]] = out
            for name in over:
                values.pop(name, None)
        found = tuple(self._resolved(out, values, batch) for out in self.plan.outputs)
        return found[0] if len(found) == 1 else found

    def _run(self, step: Step, values: Mapping[str, Any], batch: int) -> Any:
        args = self._resolved(step.args, values, batch)
        kwargs = {k: self._resolved(v, values, batch) for k, v in step.kwargs.items()}
        target = self.get_submodule(step.target) if isinstance(step.target, str) else step.target
        return target(*args, **kwargs)

    def _resolved(self, given: Any, values: Mapping[str, Any], batch: int) -> Any:
        match given:
            case Value():
                return values[given.name]
            case Held():
                path, _, leaf = given.name.rpartition(".")
                return getattr(self.get_submodule(path), leaf)
            case OfBatch():
                return batch * given.factor
            case list() | tuple():
                return type(given)(self._resolved(one, values, batch) for one in given)
        return given


@functools.cache
def taking(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of modules whose `forward(*inputs)` takes inputs of these names, one each.

    The exporter calls the inputs of a file as the function calls them.
    """

    def forward(self: Any, *inputs: Any) -> Any:
        return kind.forward(self, *inputs)

    own = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", *names)]
    forward.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]  # what inspect reads
    said = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {**said, "forward": forward})


def identifiers(names: Sequence[str]) -> tuple[str, ...]:
    """The same names as far as Python takes them, all different."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"x_{plain}"
        while plain in ("self", *found):
            plain += "_"
        found.append(plain)
    return tuple(found)


def leaves(given: Any) -> list[Any]:
    """What is in lists, tuples and dictionaries, however deep."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple):
        return [leaf for one in given for leaf in leaves(one)]
    return [given]


def _writes(step: Step) -> bool:
    schema = getattr(step.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
