"""Where channels go: concatenation, splitting, shuffling, reshaping, sharing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import Example, conv, conv_bn, image, register


class SharedModule(nn.Module):
    """One convolution applied twice, so that its input and output are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.shared = conv_bn(8, 8)
        self.head = conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x))))


@register
def shared_module() -> Example:
    return SharedModule(), image()


class ChunkCat(nn.Module):
    """The two halves go through different layers, one of them of another width, and meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.left = conv_bn(8, 8)
        self.right = conv_bn(8, 6)
        self.head = conv(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


@register
def chunk_cat() -> Example:
    return ChunkCat(), image()


class SplitEqual(nn.Module):
    """Three equal parts that are added, which ties channel i of each part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.head = conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.stem(x), 4, 1)
        return self.head(a * torch.sigmoid(b) + c)


@register
def split_equal() -> Example:
    return SplitEqual(), image()


class SplitUnequal(nn.Module):
    """Parts of 4 and 8 channels; the small one skips a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.large = conv_bn(8, 8)
        self.head = conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        small, large = torch.split(self.stem(x), [4, 8], 1)
        return self.head(torch.cat([self.large(large), small], 1))


@register
def split_unequal() -> Example:
    return SplitUnequal(), image()


class SliceHalves(nn.Module):
    """Halves taken by indexing; the second half also skips to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.mix = conv_bn(6, 6)
        self.head = conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(x[:, :6]) + x[:, 6:])


@register
def slice_halves() -> Example:
    return SliceHalves(), image()


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half the channels pass by, then both halves are interleaved (Ma et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        depthwise = nn.Sequential(conv(half, half, groups=half, bias=False), nn.BatchNorm2d(half))
        self.branch = nn.Sequential(conv_bn(half, half, 1), depthwise, conv_bn(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip, x = x.chunk(2, 1)
        x = torch.cat([skip, self.branch(x)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


@register
def channel_shuffle() -> Example:
    return nn.Sequential(conv_bn(3, 16), ShuffleUnit(16), ShuffleUnit(16), conv(16, 4)), image()


@register
def pixel_shuffle() -> Example:
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 4)), image(size=8)


@register
def pixel_unshuffle() -> Example:
    return nn.Sequential(conv(3, 6), nn.ReLU(), nn.PixelUnshuffle(2), conv(24, 8), nn.ReLU(), conv(8, 4)), image()


@register
def vgg_flatten() -> Example:
    features = [conv(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(8, 12), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 5)), image()


class ReshapePermute(nn.Module):
    """Image to tokens, a linear layer over channels, and back to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.mix = nn.Linear(8, 12)
        self.head = conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        tokens = x.reshape(batch, channels, height * width).permute(0, 2, 1)  # [B, HW, C]
        tokens = F.relu(self.mix(tokens))
        return self.head(tokens.permute(0, 2, 1).reshape(batch, -1, height, width))


@register
def reshape_permute() -> Example:
    return ReshapePermute(), image()


class NestedCat(nn.Module):
    """A concatenation of concatenations, of which one part occurs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 4), conv_bn(3, 6), conv_bn(10, 5)
        self.norm = nn.BatchNorm2d(19)
        self.head = conv(19, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        inner = torch.cat([a, b], 1)
        return self.head(self.norm(torch.cat([inner, self.c(inner), a], 1)))


@register
def nested_cat() -> Example:
    return NestedCat(), image()


class FeaturePyramid(nn.Module):
    """Lateral 1×1 convolutions, bilinear upsampling, addition (Lin et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 8), conv_bn(8, 12, stride=2), conv_bn(12, 16, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, 8, 1) for width in (8, 12, 16)])
        self.smooth = conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        top = levels.pop()
        while levels:
            below = levels.pop()
            top = below + F.interpolate(top, size=below.shape[-2:], mode="bilinear", align_corners=False)
        return self.smooth(top)


@register
def fpn() -> Example:
    return FeaturePyramid(), image()


@register
def two_inputs() -> Example:
    """Colour and depth images, each with its own stem, merged by addition."""
    return TwoInputs(), (image(3), image(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth = conv_bn(3, 8), conv_bn(1, 8)
        self.head = conv(8, 4)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.head(self.colour(colour) + self.depth(depth))
