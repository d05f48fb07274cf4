"""Kinds of convolution and normalisation, one small model each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.classics import BasicBlock
from zoo.registry import Example, conv, conv_bn, image, register


@register
def residual_projection() -> Example:
    return nn.Sequential(conv_bn(3, 8), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), conv(16, 4)), image()


@register
def grouped_conv() -> Example:
    """A ResNeXt block's middle: 4 groups of 4 channels between two 1×1 convolutions."""
    return nn.Sequential(
        conv_bn(3, 16, 1), conv_bn(16, 16, groups=4), conv_bn(16, 24, groups=4), conv(24, 5, 1)
    ), image()


@register
def depthwise_multiplier() -> Example:
    """Depthwise with two filters per channel: output 2i and 2i+1 read input i."""
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 16, groups=8), conv(16, 5, 1)), image()


@register
def transposed_conv() -> Example:
    up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
    grouped = nn.ConvTranspose2d(6, 12, 2, stride=2, groups=3)
    depthwise = nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1, groups=12)
    return nn.Sequential(conv_bn(3, 8), up, nn.ReLU(), grouped, nn.ReLU(), depthwise, conv(12, 2)), image(size=8)


@register
def padded_by_name() -> Example:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 4, 3, padding="valid")), image()


@register
def prelu() -> Example:
    return nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(), conv(6, 4)), image()


@register
def group_norm() -> Example:
    return nn.Sequential(
        conv(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 8), nn.GroupNorm(1, 8), conv(8, 4)
    ), image()


@register
def instance_norm() -> Example:
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    return nn.Sequential(
        conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv(8, 6), norm, conv(6, 4)
    ), image()


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, LayerNorm over channels, two linear layers on channels-last, layer scale (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = conv(width, width, 7, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return x + y.permute(0, 3, 1, 2)


@register
def layer_norm_permute() -> Example:
    return nn.Sequential(conv(3, 8), ConvNeXtBlock(8), conv(8, 4)), image()


class WeightStandardised(nn.Conv2d):
    """Convolution on weights of zero mean and unit variance per filter (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@register
def weight_standardised() -> Example:
    return nn.Sequential(
        WeightStandardised(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), WeightStandardised(8, 4, 3)
    ), image()


@register
def bias_free() -> Example:
    layers = [conv(3, 8, bias=False), nn.ReLU(), conv(8, 12, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 5, bias=False)), image()


@register
def conv1d_net() -> Example:
    layers = [nn.Conv1d(2, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.ConvTranspose1d(8, 6, 4, stride=2)]
    return nn.Sequential(*layers, nn.MaxPool1d(2), nn.Conv1d(6, 3, 3)), torch.randn(2, 2, 32)


@register
def conv3d_net() -> Example:
    layers = [nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(*layers, nn.ConvTranspose3d(6, 4, 2, stride=2), nn.Conv3d(4, 2, 1)), torch.randn(2, 1, 8, 8, 8)


@register
def mlp() -> Example:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 3)), torch.randn(
        2, 12
    )
