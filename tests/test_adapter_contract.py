"""The generic adapter keeps the contract on everything that a network can be made of."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from adapters.generic import GenericAdapter
from compressor.testing import AdapterContract
from tests import networks
from tests.vision import torchvision


class _Contract(AdapterContract):
    size: ClassVar[int] = 16
    network: ClassVar[Any]

    def adapter(self) -> GenericAdapter:
        return GenericAdapter()

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return type(self).network()

    def example(self) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        return (torch.randn(1, 3, self.size, self.size),)


class TestResidual(_Contract):
    network = networks.Residual
    least_layers = 4
    least_share = 0.8


class TestSeparable(_Contract):
    network = networks.Separable
    least_layers = 3
    least_share = 0.7


class TestGrouped(_Contract):
    network = networks.Grouped
    least_layers = 4
    least_share = 0.8


class TestSqueezeExcite(_Contract):
    network = networks.SqueezeExcite
    least_layers = 3
    least_share = 0.8


class TestDense(_Contract):
    network = networks.Dense
    least_layers = 5
    least_share = 0.8


class TestSharedModule(_Contract):
    network = networks.SharedModule
    least_layers = 1


class TestFlatten(_Contract):
    network = networks.Flatten
    least_layers = 3
    least_share = 0.8


class TestLargeKernels(_Contract):
    network = networks.LargeKernels
    least_layers = 3
    least_share = 0.8


class TestPaddedShortcuts(_Contract):
    network = networks.PaddedShortcuts
    least_layers = 3
    least_share = 0.5


class _Vision(_Contract):
    size = 32
    name: ClassVar[str]
    choices_per_layer = 1
    random_architectures = 2

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return torchvision().models.get_model(self.name, weights=None)


class TestResNet18(_Vision):
    name = "resnet18"
    least_layers = 12
    least_share = 0.9


class TestMobileNetV2(_Vision):
    name = "mobilenet_v2"
    least_layers = 25
    least_share = 0.85  # on so small an image the classifier, which keeps its outputs, weighs more


class TestMobileNetV3(_Vision):
    name = "mobilenet_v3_small"
    least_layers = 25
    least_share = 0.85


class TestEfficientNetB0(_Vision):
    name = "efficientnet_b0"
    least_layers = 38
    least_share = 0.85


@pytest.mark.sweep
class TestEveryChoiceOfMobileNetV2(_Vision):
    name = "mobilenet_v2"
    choices_per_layer = None


@pytest.mark.sweep
class TestEveryChoiceOfEfficientNetB0(_Vision):
    name = "efficientnet_b0"
    choices_per_layer = None


@pytest.mark.sweep
class TestDenseNet121(_Vision):
    name = "densenet121"
    least_layers = 119


def test_an_adapter_that_describes_nothing_does_not_pass() -> None:
    class Empty(TestResidual):
        least_layers = 1
        _cache = None

        def adapter(self) -> Any:
            class Nothing:
                def read(self, model: nn.Module, example: Any) -> Any:
                    from compressor.space import SearchSpace  # noqa: PLC0415

                    return SearchSpace(())

            return Nothing()

    with pytest.raises(AssertionError):
        Empty().test_finds_layers()
