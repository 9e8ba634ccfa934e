"""One traced forward pass: how often each weight is applied, and what was not counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.cost import TensorSize, tensor_numel
from compressor.errors import DataError
from compressor.network.outputs import make_known
from compressor.space import PRODUCT

_aten = torch.ops.aten
_MOVES = {  # operators that only create, copy or reorder values
    "clone", "copy_", "_to_copy", "cat", "stack", "constant_pad_nd", "empty", "zeros", "ones",
    "full", "arange", "index_select", "gather", "index", "new_zeros", "new_ones", "new_empty",
    "zeros_like", "ones_like", "empty_like", "scalar_tensor", "fill_", "zero_", "lift_fresh",
    "contiguous", "native_dropout", "repeat", "channel_shuffle", "pixel_shuffle",
    "_local_scalar_dense", "new_full", "full_like", "embedding", "roll", "flip", "slice_scatter",
    "select_scatter", "set_", "resize_", "as_strided_", "linspace",
}  # fmt: skip


@dataclass(frozen=True)
class Count:
    """What one input costs.

    Attributes:
        tensors: every parameter, with the multiply-adds per element that it takes part in.
        products: every product as `product@N`, by the N-th of all operators that multiply; those
            `of` no parameter are between activations.
        uncounted: other arithmetic operators, which by the definition of MAdds do not count,
            with the number of calls.
    """

    tensors: tuple[TensorSize, ...]
    products: tuple[TensorSize, ...]
    uncounted: Mapping[str, int]

    @property
    def terms(self) -> tuple[TensorSize, ...]:
        """All that is multiplied; products of parameters are in there twice."""
        return (*self.tensors, *self.products)

    @property
    def madds(self) -> int:
        """All multiply-adds of one input."""
        return sum(t.madds for t in self.terms if not t.of)

    @property
    def params(self) -> int:
        """All parameters; shared ones once."""
        return sum(tensor_numel(t.shape) for t in self.tensors)


def count(model: nn.Module, example: tuple[Tensor, ...]) -> Count:
    """Counts the multiply-adds of one input by running the model once.

    Args:
        model: run in evaluation mode, without gradients; its modes come back.
        example: inputs `[N, …]`; only the first of the batch is used.

    Raises:
        DataError: the model does not run on the example.
    """
    with tracing() as tracer, evaluating(model):
        forward(model, single(example))
    return tracer.count(model)


def single(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first input of a batch, as a batch of one; tensors without the batch stay whole."""
    batch = next((t.shape[0] for t in example[:1] if t.dim()), None)
    return tuple(t[:1] if t.dim() and t.shape[0] == batch else t for t in example)


def forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Runs the model without gradients.

    Raises:
        DataError: the forward pass fails; names the shapes and the model's own message.
    """
    try:
        with torch.no_grad():
            output = model(*inputs)
            make_known(output)
            return output
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in inputs)
        raise DataError(
            f"the model must run on its inputs, but with shapes {shapes} it raised "
            f"{type(error).__name__}: {error}; give inputs of the shape that it was trained on"
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode comes back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def tracing() -> Iterator[Tracer]:
    """Counts what runs inside the block; attention is computed from its plain products."""
    with plain_attention(), Tracer() as tracer:
        yield tracer


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention is computed from its products inside the block, not by one fused operator."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Adds up multiply-adds by the storage of the operand that may be a parameter."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products: list[tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]]] = []
        self._calls = 0
        self._uncounted: Counter[str] = Counter()

    @property
    def calls(self) -> int:
        """Operators so far that are counted as products."""
        return self._calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = _RULES.get(func.overloadpacket)
        if rule:
            self._calls += 1
            for shape, operands in rule(args, out):
                keys = tuple((a.untyped_storage().data_ptr(), _held(a)) for a in operands)
                self._products.append((self._calls, shape, keys))
        elif not func.is_view and func.overloadpacket.__name__ not in _MOVES:
            self._uncounted[func.overloadpacket.__name__] += 1
        return out

    def count(self, model: nn.Module) -> Count:
        """What ran, attributed to the model's parameters."""
        owners = {
            (p.untyped_storage().data_ptr(), p.numel()): name
            for name, p in model.named_parameters()
            if p.dim() > 1
        }
        positions: Counter[str] = Counter()
        products = []
        for call, shape, keys in self._products:
            name = next((owners[k] for k in keys if k in owners), "")
            products.append(TensorSize(product_name(call), shape, 1, name))
            positions[name] += tensor_numel(shape)
        tensors = tuple(
            TensorSize(name, tuple(p.shape), positions[name] // max(p.numel(), 1))
            for name, p in model.named_parameters()
        )
        return Count(tensors, tuple(products), dict(sorted(self._uncounted.items())))


def _held(tensor: Tensor) -> int:
    """Number of elements in memory: one for all that an expanded dimension repeats."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor_numel([size for size, stride in sizes if stride])


def multiplies(func: Any) -> bool:
    """Whether an operator is counted as products."""
    return func.overloadpacket in _RULES


def product_name(call: int) -> str:
    """The name of a product, by the place of its call among all that are counted."""
    return f"{PRODUCT}{call}"


# Sizes whose product are the multiply-adds, and what is multiplied.
_Products: TypeAlias = list[tuple[tuple[int, ...], tuple[Tensor, ...]]]


def _convolution(args: Any, out: Tensor) -> _Products:
    source, weight, transposed = args[0], args[1], args[6]
    grid = (source if transposed else out).shape
    return [((int(weight.numel()), int(grid[0]), *map(int, grid[2:])), (source, weight))]


def _product(left: int) -> Callable[[Any, Tensor], _Products]:
    """Rows x inner x columns (x batch) for a product whose left operand is `args[left]`."""

    def rule(args: Any, out: Tensor) -> _Products:
        return [((*out.shape, int(args[left].shape[-1])), (args[left], args[left + 1]))]

    return rule


def _recurrent(args: Any, _: object) -> _Products:
    """The CPU's fused LSTM layer: each weight is applied once for each step `[T, N, …]`."""
    steps = int(args[0].shape[0]) * int(args[0].shape[1])
    return [((steps, int(weight.numel())), (weight,)) for weight in args[1:3]]


_RULES: Mapping[Any, Callable[[Any, Any], _Products]] = {
    _aten.convolution: _convolution,
    _aten.mm: _product(0),
    _aten.bmm: _product(0),
    _aten.mv: _product(0),
    _aten.addmm: _product(1),
    _aten.baddbmm: _product(1),
    _aten.addmv: _product(1),
    _aten.linear: _product(0),
    _aten.matmul: _product(0),
    _aten.mkldnn_rnn_layer: _recurrent,
}
