"""The published architectures, from their papers: ResNet, MobileNetV2, DenseNet, U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.registry import Example, conv, conv_bn, image, register


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The residual path: nothing where shapes agree, else a strided 1×1 projection."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a residual path (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a residual path (He et al. 2016, figure 5 right), with the stride in the 3×3."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.reduce = conv_bn(inputs, width, 1)
        self.spatial = conv_bn(width, width, stride=stride)
        self.expand = nn.Sequential(conv(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.expand(self.spatial(self.reduce(x))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, block: type[BasicBlock | Bottleneck], depths: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = width
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width << stage, stride))
                channels = (width << stage) * block.expansion
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@register
def resnet18(width: int = 64, size: int = 224, classes: int = 1000, batch: int = 1) -> Example:
    return ResNet(BasicBlock, (2, 2, 2, 2), width, classes), image(size=size, batch=batch)


@register
def resnet50(width: int = 64, size: int = 224, classes: int = 1000, batch: int = 1) -> Example:
    return ResNet(Bottleneck, (3, 4, 6, 3), width, classes), image(size=size, batch=batch)


class InvertedResidual(nn.Module):
    """Widen by 1×1, filter each channel, project linearly (Sandler et al. 2018, figure 4)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else self.filtered(inputs, hidden, 1)
        layers += self.filtered(hidden, hidden, 3, stride=stride, groups=hidden)
        layers += [conv(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    @staticmethod
    def filtered(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            conv(inputs, outputs, kernel, stride=stride, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        ]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Sandler et al. 2018, table 2: expansion, channels, repeats, stride of the first."""


@register
def mobilenet_v2(width: float = 1.0, size: int = 224, classes: int = 1000, batch: int = 1) -> Example:
    channels, last = int(32 * width), int(1280 * max(1.0, width))
    layers = InvertedResidual.filtered(3, channels, 3, stride=2)
    for expansion, outputs, repeats, stride in MOBILENET_V2:
        for index in range(repeats):
            layers.append(InvertedResidual(channels, int(outputs * width), stride if index == 0 else 1, expansion))
            channels = int(outputs * width)
    layers += InvertedResidual.filtered(channels, last, 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, classes)]
    return nn.Sequential(*layers), image(size=size, batch=batch)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1×1, norm, ReLU, 3×3; the result is appended to the input (Huang et al. 2017, DenseNet-B)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            conv(4 * growth, growth, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet(growth: int, depths: Sequence[int], channels: int, classes: int) -> nn.Sequential:
    """DenseNet-BC: dense blocks, between them a 1×1 that halves the channels and a pooling that halves the size."""
    layers: list[nn.Module] = [conv(3, channels, bias=False)]
    for index, depth in enumerate(depths):
        if index:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, channels // 2, 1, bias=False)]
            layers += [nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


@register
def densenet_small() -> Example:
    return densenet(12, (3, 3, 3), 24, 10), image(size=16)


@register
def densenet121(size: int = 16) -> Example:
    """The depths and the growth of DenseNet-121; the stem of its CIFAR version, which keeps the image's size."""
    return densenet(32, (6, 12, 24, 16), 64, 1000), image(size=size, batch=1)


class UNet(nn.Module):
    """Encoder, decoder by transposed convolution, and concatenated skips (Ronneberger et al. 2015)."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            nn.Sequential(conv_bn(inputs, outputs), conv_bn(outputs, outputs))
            for inputs, outputs in zip([3, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, stride=2) for deep, shallow in pairs)
        self.decoder = nn.ModuleList(conv_bn(2 * shallow, shallow) for _, shallow in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self.encoder):
            x = stage(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, stage in zip(self.up, self.decoder, strict=True):
            x = stage(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


@register
def unet(width: int = 8, size: int = 32) -> Example:
    return UNet(width, 3, 4), image(size=size)
