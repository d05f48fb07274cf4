"""What the published multi-task networks are built of: convolutions with BatchNorm, residual blocks, a residual trunk.

He et al., Deep residual learning (CVPR 2016); dilation instead of strides as in Chen et al., DeepLab (T-PAMI 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

TaskOutputs = dict[str, int]
"""Task → channels of its prediction."""


class ConvBnRelu(nn.Sequential):
    """A convolution that keeps the size of the picture (at stride 1), BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = ConvBnRelu(inputs, outputs, 3, stride, dilation)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1 down, 3×3, 1×1 up to four times the width, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBnRelu(inputs, width, 1),
            ConvBnRelu(width, width, 3, stride),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Trunk(nn.Module):
    """[N, 3, H, W] → features of each stage, from fine to coarse.

    The stem halves the picture, and so does every stage but the first; dilated ones keep the size and see as far.

    Args:
        widths: channels of the stages; the stem has those of the first.
        blocks: residual blocks of each stage.
        dilations: of each stage; above 1 the stage does not halve the picture.
    """

    def __init__(self, widths: Sequence[int], blocks: int = 2, dilations: Sequence[int] = ()) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.stem = ConvBnRelu(3, widths[0], 3, 2)
        self.stages = nn.ModuleList()
        inputs = widths[0]
        for index, width in enumerate(widths):
            dilation = dilations[index] if dilations else 1
            stride = 1 if index == 0 or dilation > 1 else 2
            self.stages.append(residual_stage(inputs, width, blocks, stride, dilation))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def residual_stage(inputs: int, outputs: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, dilation)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, dilation) for _ in range(blocks - 1)))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole picture holds (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.weigh(x)
        return result


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of another tensor."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
