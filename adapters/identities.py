"""Follows every channel of a network through one forward pass, operator by operator.

A tensor is accompanied by identities: what each of its elements stands for. Operators that only
move elements are run on the identities as well, so that slices, shuffles, concatenations and
reshapes of any kind need no rule of their own; products with weights make new identities; what is
added or multiplied element by element is tied. Whatever an unknown operator reads is kept whole.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters.classes import Classes
from adapters.elements import Size
from adapters.follower import Follower
from adapters.limits import USUAL, Limits, Watch
from adapters.moves import MOVED, move
from adapters.rules import apply
from compressor.errors import AdapterError, DataError
from compressor.network.counting import evaluating, forward, multiplies, plain_attention, single
from compressor.network.sized import watching
from compressor.network.sized_calls import INFERRED, SizedCall
from compressor.network.statistics import Numbers, takes_statistics


def follow(model: nn.Module, example: tuple[Tensor, ...], limits: Limits = USUAL) -> Classes:
    """What is tied to what in a network.

    Args:
        model: run once in evaluation mode, on the first of the batch; not touched.
        example: inputs `[N, …]`.
        limits: of time and memory.

    Raises:
        DataError: the model does not run on the example.
        AdapterError: a rule of ours fails on one of its operators, or a limit is passed.
    """
    follower = Follower(model)

    def note(name: str, call: SizedCall, out: Any) -> None:
        parts = [(t, dim % t.dim(), most) for t, dim, most in call.parts(out)]
        shape = tuple(t.shape[dim] if most is None else most for t, dim, most in parts)
        for place, ((tensor, dim, _), given) in enumerate(zip(parts, call.sizes, strict=True)):
            size = Size(name, place, shape, given != INFERRED, call.whole, call.exported)
            follower.sized(size, (follower.known(tensor), dim, shape[place]))

    watch = _Watch(follower, limits.watch())
    try:
        with evaluating(model), plain_attention(), watching(model, note), watch:
            outputs = forward(model, single(example))
    except DataError as error:
        raise watch.failure or error from error.__cause__
    follower.settle()
    for out in tree_leaves(outputs):
        if isinstance(out, Tensor):
            follower.keep(out, "nothing in the network reads its channels: they are its output")
    return follower.classes


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Runs operators and has what comes out of them noted."""

    def __init__(self, follower: Follower, limits: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.failure: AdapterError | None = None
        self._follower, self._limits, self._numbers = follower, limits, Numbers()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        names = [argument.name for argument in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | (kwargs or {})
        self._follower.products += multiplies(func)
        counted = takes_statistics(func, args)
        self._follower.statistic = self._numbers.name(func) if counted else ""
        try:
            self._limits.check()
            if name in MOVED:
                move(self._follower, func, name, arguments, args, out)
            else:
                apply(self._follower, name, arguments, args, out)
        except AdapterError as error:
            self.failure = error
            raise
        except Exception as error:  # a rule that does not fit is no fault of the network
            self.failure = AdapterError(f"the operator {name} cannot be followed: {error!r}")
            raise self.failure from error
        return out
