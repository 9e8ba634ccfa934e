"""Small networks, one for each thing that an adapter must understand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, bias: bool = False) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=bias), nn.BatchNorm2d(o), nn.ReLU()
    )


class Residual(nn.Module):
    """Two stages with identity and projection shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a1, self.a2 = conv(16, 24), nn.Conv2d(24, 16, 3, padding=1)
        self.b1, self.b2 = conv(16, 32, s=2), nn.Conv2d(32, 32, 3, padding=1)
        self.short = nn.Conv2d(16, 32, 1, stride=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(x + self.a2(self.a1(x)))
        x = functional.relu(self.short(x) + self.b2(self.b1(x)))
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    """Depthwise-separable convolutions, 3x3 and 5x5."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 16, s=2), conv(16, 16, g=16), conv(16, 32, 1), conv(32, 32, 5, 2, g=32),
            conv(32, 48, 1),
        )  # fmt: skip
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolutions that are not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.one = conv(3, 16)
        self.two = conv(16, 32, g=2)
        self.three = conv(32, 32, g=4, bias=True)
        self.four = conv(32, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.four(self.three(self.two(self.one(x)))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A channel gate computed from the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32)
        self.down, self.up = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.out = conv(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.out(x * gate).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation of everything so far, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.grow = nn.ModuleList(conv(16 + 8 * i, 8) for i in range(3))
        self.norm = nn.BatchNorm2d(40)
        self.squeeze = conv(40, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.grow:
            features.append(layer(torch.cat(features, 1)))
        return self.head(
            self.squeeze(functional.relu(self.norm(torch.cat(features, 1)))).mean((2, 3))
        )


class SharedModule(nn.Module):
    """One convolution applied twice, one head for two inputs' features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.out = conv(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(self.again(functional.relu(self.again(x))))
        return self.head(self.out(x).mean((2, 3)))


class Flatten(nn.Module):
    """Convolutions flattened into a linear layer, 16 positions a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, s=2), conv(16, 32, s=2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(32 * 16, 40), nn.ReLU(), nn.Linear(40, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class LargeKernels(nn.Module):
    """5x5 and 7x7 kernels, dense and depthwise, one padded by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 7, 2)
        self.depthwise = conv(16, 16, 7, g=16)
        self.dense = nn.Conv2d(16, 24, 5, padding="same")
        self.dilated = nn.Conv2d(24, 24, 5, padding=4, dilation=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.dense(self.depthwise(self.stem(x))))
        return self.head(functional.relu(self.dilated(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """A CIFAR block with the parameter-free shortcut of He et al., section 4.2, option A."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.pad = (o - i) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)
            )
        return functional.relu(out + x)


class PaddedShortcuts(nn.Module):
    """A small CIFAR ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 32, 1)
        )
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))
