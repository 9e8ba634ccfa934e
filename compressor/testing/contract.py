"""What every adapter promises, as test methods that pytest collects from a subclass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compressor.cost import SizeTable, madds_table, params_table
from compressor.deploy.export import export_onnx
from compressor.network.adapter import Adapter
from compressor.network.counting import count
from compressor.network.data import tensors_hash
from compressor.network.outputs import output_tensors
from compressor.network.proof import tell_channels_apart
from compressor.network.structure import mask, masked, materialise
from compressor.network.verify import verify_space
from compressor.space import Architecture, SearchSpace


class AdapterContract:
    """Subclass, give an adapter, a model and an example; every method starting with test runs.

    The space under test is the one that a user gets: as the adapter describes it, less what
    `compressor.network.verify` freezes. `least_layers` and `least_share` keep an adapter that
    describes nothing from passing.

    Attributes:
        least_layers: search layers that must remain.
        least_share: share of MAdds that the smallest architecture must take off.
        random_architectures: whole architectures drawn beside all single choices.
        choices_per_layer: how many options of each layer are tried alone, cheapest first;
            None tries all.
        tolerance: largest difference, as a share of the outputs' scale, in float64.
        exports: whether the ONNX promise is checked.
    """

    least_layers = 1
    least_share = 0.1
    random_architectures = 5
    choices_per_layer: int | None = None
    tolerance = 1e-9
    exports = True
    _cache: tuple[nn.Module, tuple[Tensor, ...], SearchSpace] | None = None

    def adapter(self) -> Adapter:
        """The adapter under test."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """The network to read; called once."""
        raise NotImplementedError

    def example(self) -> tuple[Tensor, ...]:
        """Inputs `[N, …]` that the network accepts."""
        raise NotImplementedError

    def test_finds_layers(self) -> None:
        """Enough of the network can be searched."""
        model, example, space = self._read()
        table = self._table(model, example, space)
        taken = 1 - table(space.smallest) / table(space.original)
        assert len(space.layers) >= self.least_layers, space.frozen
        assert taken >= self.least_share, f"only {taken:.1%} can be taken off; {space.frozen}"

    def test_layers_stand_in_forward_order_with_the_original_last(self) -> None:
        """Names are unique; the first option is cheapest and the last is the original."""
        model, example, space = self._read()
        table = self._table(model, example, space)
        names = [layer.name for layer in space.layers]
        assert len(set(names)) == len(names)
        for i, size in enumerate(space.sizes):
            costs = [table((*space.original[:i], o, *space.original[i + 1 :])) for o in range(size)]
            assert min(costs) == costs[0]
            assert max(costs) == costs[-1] == table(space.original)

    def test_original_architecture_is_the_original(self) -> None:
        """Nothing cut, nothing changed."""
        model, example, space = self._read()
        same = materialise(model, space, space.original)
        assert same is not model
        self._assert_equal(_run(same, example), _run(model, example))

    def test_every_single_choice_equals_the_masked_original(self) -> None:
        """Each option of each layer, all else original."""
        model, example, space = self._read()
        for architecture in _single_choices(space, self.choices_per_layer):
            self._assert_pruned_equals_masked(model, example, space, architecture)

    def test_random_architectures_equal_the_masked_original(self) -> None:
        """Whole architectures, the smallest among them."""
        model, example, space = self._read()
        for architecture in [space.smallest, *self._random(space)]:
            self._assert_pruned_equals_masked(model, example, space, architecture)

    def test_costs_equal_an_independent_count(self) -> None:
        """The tables agree with torch's flop counter on the materialised network."""
        model, example, space = self._read()
        madds = self._table(model, example, space)
        params = params_table(space, count(model, example).tensors)
        for architecture in [space.original, space.smallest, *self._random(space)]:
            small = materialise(model, space, architecture)
            assert madds(architecture) == _flops(small, example) // 2, architecture
            assert params(architecture) == sum(p.numel() for p in small.parameters())

    def test_input_model_is_untouched(self) -> None:
        """State dict, modes, hooks and gradients are as before."""
        model, example = self.model().train(), self.example()
        first = next(model.children(), model)
        first.eval()
        handle = first.register_forward_hook(lambda *_: None)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = _snapshot(model)
        space = verify_space(model, example, self.adapter().read(model, example))
        materialise(model, space, space.smallest)
        mask(model, space, space.smallest)
        assert _snapshot(model) == before
        handle.remove()

    def test_onnx_agrees_with_torch(self, tmp_path: Path) -> None:
        """A random architecture exports, loads, and computes the same at several batch sizes."""
        if not self.exports:
            return
        model, example, space = self._read()
        small = materialise(model, space, self._random(space)[0]).float()
        inputs = tuple(t.float() if t.is_floating_point() else t for t in example)
        report = export_onnx(small, inputs, tmp_path / "model.onnx")
        assert len(report.batch_sizes) > 1
        assert report.path.exists()

    def _read(self) -> tuple[nn.Module, tuple[Tensor, ...], SearchSpace]:
        cls = type(self)
        if cls._cache is None:
            model = self.model().eval()
            tell_channels_apart(model)
            example = self.example()
            space = verify_space(model, example, self.adapter().read(model, example))
            doubled = tuple(t.double() if t.is_floating_point() else t for t in example)
            cls._cache = (model.double(), doubled, space)
        return cls._cache

    def _table(
        self, model: nn.Module, example: tuple[Tensor, ...], space: SearchSpace
    ) -> SizeTable:
        counted = count(model, example)
        return madds_table(space, counted.tensors, products=counted.products)

    def _random(self, space: SearchSpace) -> list[Architecture]:
        draw = random.Random(0)  # noqa: S311  (a reproducible sample, no secret)
        return [
            tuple(draw.randrange(size) for size in space.sizes)
            for _ in range(self.random_architectures)
        ]

    def _assert_pruned_equals_masked(
        self,
        model: nn.Module,
        example: tuple[Tensor, ...],
        space: SearchSpace,
        architecture: Architecture,
    ) -> None:
        pruned = _run(materialise(model, space, architecture), example)
        with masked(model, space, architecture):
            want = _run(model, example)
        self._assert_equal(pruned, want)

    def _assert_equal(self, got: list[Tensor], want: list[Tensor]) -> None:
        assert [t.shape for t in got] == [t.shape for t in want]
        for a, b in zip(got, want, strict=True):
            gap, scale = float((a - b).abs().max()), float(b.abs().max())
            assert gap <= self.tolerance * scale, f"differs by {gap:.3g} of {scale:.3g}"


def _single_choices(space: SearchSpace, most: int | None) -> Iterator[Architecture]:
    for i, size in enumerate(space.sizes):
        for option in range(size - 1)[:most]:
            yield (*space.original[:i], option, *space.original[i + 1 :])


def _run(model: nn.Module, example: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return output_tensors(model(*example))


def _flops(model: nn.Module, example: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*(t[:1] for t in example))
    return int(counter.get_total_flops())


def _snapshot(model: nn.Module) -> Any:
    state = tensors_hash(model.state_dict().items())
    modes = [m.training for m in model.modules()]
    hooks = [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()]
    grads = [
        (p.requires_grad, float(p.grad.sum())) for p in model.parameters() if p.grad is not None
    ]
    return state, modes, hooks, grads
