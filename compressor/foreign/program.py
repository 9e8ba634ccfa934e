"""An exported program, as `torch.export` writes it into JSON, as a network."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from compressor.errors import TargetError
from compressor.foreign.archive import DTYPES, Archive
from compressor.foreign.builder import Builder
from compressor.foreign.operators import add_call
from compressor.foreign.steps import Held, StepNetwork, Value

_aten = torch.ops.aten
_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d,
           4: torch.preserve_format}  # fmt: skip
_NUMBERS = {  # what a program computes sizes with
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "pow", "truediv", "getitem",
                 "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")
} | {
    "torch.sym_max": max, "torch.sym_min": min, "torch.sym_not": operator.not_,
    "torch.sym_float": float, "torch.sym_int": int, "torch.sym_ite": lambda c, a, b: a if c else b,
    "math.ceil": math.ceil, "math.floor": math.floor, "math.trunc": math.trunc,
}  # fmt: skip
# checks of what the exporter took for granted; ours is that the outputs are equal
_CHECKS = {
    "_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range",
    "sym_constrain_range_for_size", "sym_numel",
}  # fmt: skip
_TEXTS = {  # the texts that operators of networks take; other operators could be told file names
    "none", "tanh", "floor", "trunc", "same", "valid", "constant", "reflect", "replicate",
    "circular", "mean", "sum", "bilinear", "nearest", "bicubic", "ij", "xy", "max", "gelu", "relu",
}  # fmt: skip
_INLINED = "torch.ops.higher_order.wrap_with_set_grad_enabled"


def _number(value: Any) -> Any:
    """Numbers, and lists of them, alone; JSON could hold anything."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    if value in _NO_JSON:
        return float(value)
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


_NO_JSON = ("Infinity", "-Infinity", "NaN")
_NAMED = ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor")
_LITERALS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools"), _number),
    "as_none": lambda _: None,
    "as_graph": lambda _: None,  # see `_inline`
    "as_string": lambda value: value,
    "as_scalar_type": lambda value: DTYPES[value],
    "as_memory_format": lambda value: _MEMORY[value],
    "as_device": lambda _: torch.device("cpu"),
    "as_layout": lambda _: torch.strided,
}


def read_program(archive: Archive, name: str) -> StepNetwork:
    """The network of an exported program, in evaluation mode.

    Args:
        archive: what the file holds.
        name: of the file, for errors.

    Raises:
        TargetError: it uses what cannot be read, or was exported in training mode; says which
            nodes.
    """
    try:
        return _Reader(archive, name).network()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise TargetError(
            f"{name!r} cannot be read as an exported program: it is not as torch.export.save "
            f"writes it ({error!r})"
        ) from error


class _Reader:
    def __init__(self, archive: Archive, name: str) -> None:
        module = archive.program["graph_module"]
        self._graph, self._signature = module["graph"], module["signature"]
        self._builder = Builder(archive.tensors, archive.learnt)
        self._name = name
        self._known: dict[str, Any] = {}
        self._inputs: list[str] = []
        self._problems: dict[str, list[str]] = {}

    def network(self) -> StepNetwork:
        for spec in self._signature["input_specs"]:
            self._input(spec)
        self._nodes(self._graph, "")
        if self._problems:
            listed = "; ".join(f"{why}: {', '.join(n)}" for why, n in self._problems.items())
            raise TargetError(
                f"{self._name!r} cannot be read: {listed}; write a Python target whose "
                "build_model() makes the torch network instead"
            )
        return self._builder.network(self._inputs, self._outputs())

    def _input(self, spec: Mapping[str, Any]) -> None:
        ((kind, given),) = spec.items()
        if kind == "user_input":
            ((form, arg),) = given["arg"].items()
            if form == "as_tensor":
                self._inputs.append(arg["name"])
                self._known[arg["name"]] = Value(arg["name"])
            elif form != "as_none":
                self._problem("inputs must be tensors", form)
        elif kind == "constant_input":
            self._known[given["name"]] = next(iter(given["value"].values()))
        elif kind in ("parameter", "buffer", "tensor_constant"):
            held = given[f"{kind}_name"]
            if held not in self._builder.tensors:
                raise ValueError(f"it lacks the values of {held!r}")
            self._known[given["arg"]["name"]] = Held(held)
        else:
            self._problem("inputs must be tensors", kind)

    def _outputs(self) -> list[Value | Held]:
        found: list[Value | Held] = []
        for spec in self._signature["output_specs"]:
            ((kind, given),) = spec.items()
            # others are statistics that the program writes, of no use outside training
            value = self._argument(given["arg"]) if kind in ("user_output", "loss_output") else None
            if isinstance(value, Value | Held):
                found.append(value)
        if not found:
            raise ValueError("it has no output")
        return found

    def _nodes(self, graph: Mapping[str, Any], prefix: str) -> None:
        dims = {prefix + n: len(m["sizes"]) for n, m in graph["tensor_values"].items()}
        for node in graph["nodes"]:
            self._node(node, prefix, dims)

    def _node(self, node: Mapping[str, Any], prefix: str, dims: Mapping[str, int]) -> None:
        target, inputs, outs = node["target"], node["inputs"], self._outs(node, prefix)
        found = [(i["name"], self._argument(i["arg"], prefix)) for i in inputs]
        if target == _INLINED:
            self._inline(node, [value for _, value in found], outs[0])
            return
        where, call = outs[0][0] if outs[0] else target, self._called(target)
        if call is None:
            self._problem(f"the operator {target} is not known", where)
        elif call is not _skipped:
            if any(n in ("training", "train") and v is True for n, v in found):
                self._problem("it was exported in training mode, export model.eval()", where)
            keyed = [given.get("kind") == 2 for given in inputs]
            by_name = dict(one for one, key in zip(found, keyed, strict=True) if key)
            by_place = [one for one, key in zip(found, keyed, strict=True) if not key]
            add_call(self._builder, call, by_place, by_name, outs, dims)

    def _called(self, target: str) -> Callable[..., Any] | None:
        if target in _NUMBERS:
            return _NUMBERS[target]  # type: ignore[no-any-return]  # of several kinds
        parts = target.split(".")
        if parts[:3] != ["torch", "ops", "aten"] or len(parts) != 5:
            return None
        if parts[3] in _CHECKS:
            return _skipped
        found = getattr(getattr(_aten, parts[3], None), parts[4], None)
        return found if isinstance(found, torch._ops.OpOverload) else None

    def _inline(self, node: Mapping[str, Any], found: Sequence[Any], outs: Sequence[str]) -> None:
        """A part of the program that runs without gradients: its calls, as any others."""
        place = next(k for k, i in enumerate(node["inputs"]) if "as_graph" in i["arg"])
        inner, prefix = node["inputs"][place]["arg"]["as_graph"]["graph"], f"{outs[0]}/"
        for entry, value in zip(inner["inputs"], found[place + 1 :], strict=True):
            ((_, arg),) = entry.items()
            self._known[prefix + (arg.get("name") or arg["as_name"])] = value
        self._nodes(inner, prefix)
        results = [self._argument(out, prefix) for out in inner["outputs"]]
        self._known.update(zip(outs, results, strict=True))

    def _outs(self, node: Mapping[str, Any], prefix: str) -> tuple[list[str], bool]:
        """Names of what a node gives, and whether it gives several."""
        names, several = [], len(node["outputs"]) > 1
        for out in node["outputs"]:
            ((form, given),) = out.items()
            if form == "as_tensors":
                names, several = [prefix + one["name"] for one in given], True
            elif form == "as_none":
                names.append("")
            elif form in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
                names.append(prefix + (given.get("name") or given["as_name"]))
            else:
                raise ValueError(f"a node gives {form}")
        for name in names:
            self._known[name] = Value(name)
        return names, several

    def _argument(self, given: Mapping[str, Any], prefix: str = "") -> Any:
        ((form, value),) = given.items()
        if form == "as_string" and value not in _TEXTS:
            self._problem("operators of networks take no such text", repr(value))
        if form in _LITERALS:
            return _LITERALS[form](value)
        if form in _NAMED:
            return self._one(value, prefix)
        if form in {f"{one}s" for one in _NAMED}:
            return [self._one(one, prefix) for one in value]
        raise ValueError(f"an argument is {form}")

    def _one(self, value: Mapping[str, Any], prefix: str) -> Any:
        """A tensor or number, by its name or as it is."""
        if "as_tensor" in value:
            value = value["as_tensor"]
        name = value.get("name") or value.get("as_name")
        if name is None:
            ((form, literal),) = value.items()
            return None if form == "as_none" else _number(literal)
        return self._known[prefix + name]

    def _problem(self, what: str, where: str) -> None:
        self._problems.setdefault(what, []).append(where)


def _skipped() -> None:
    """Stands for a call that is left out."""
