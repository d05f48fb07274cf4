"""Attention, gates, parameters used without a layer, in-place writing, and ops that mix all channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import Example, conv, conv_bn, image, register


class Around(nn.Module):
    """A stem, something in the middle that keeps `width` channels, and a head of four channels."""

    def __init__(self, middle: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.middle = middle
        self.head = conv(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)))


class SqueezeExcite(nn.Module):
    """Each channel is scaled by a gate computed from all channels' means (Hu et al. 2018)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.excite = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


@register
def squeeze_excite() -> Example:
    return Around(SqueezeExcite(8, 4)), image()


class SpatialAttention(nn.Module):
    """A map from the mean and the maximum over channels scales every channel (Woo et al. 2018, CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = conv(2, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return x * torch.sigmoid(self.mix(pooled))


@register
def spatial_attention() -> Example:
    return Around(SpatialAttention()), image()


class AttentionMap(nn.Module):
    """A convolution with one output channel gates all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = conv(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(x))


@register
def attention_map() -> Example:
    return Around(AttentionMap(8)), image()


class LearnedScale(nn.Module):
    """Parameters of the model itself: a scale per channel, a shift without batch dimension, a positional embedding."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, width, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(width, 1, 1))
        self.position = nn.Parameter(0.1 * torch.randn(1, width, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift + self.position


@register
def learned_scale() -> Example:
    return Around(LearnedScale(8, 16)), image()


class InPlace(nn.Module):
    """Tensors that are written to: `+=`, `relu_`, `mul_`, and a part of a tensor through a view."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        y.relu_()
        z = self.b(y).mul_(0.5)
        z += y
        return F.relu_(z)


@register
def inplace() -> Example:
    return Around(InPlace(8)), image()


class WriteThroughView(nn.Module):
    """Half of the channels are changed in place through a view; the whole is used afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = conv(width, width)
        self.gain = nn.Parameter(torch.rand(width // 2, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        x[:, : x.shape[1] // 2].mul_(self.gain)
        return x


@register
def write_through_view() -> Example:
    return Around(WriteThroughView(8)), image()


@register
def dropout() -> Example:
    return Around(nn.Sequential(nn.Dropout2d(0.3), conv(8, 8), nn.Dropout(0.3))), image()


@register
def adaptive_pool() -> Example:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), conv(8, 8), nn.AdaptiveMaxPool2d((2, 3)))
    return Around(pool), image()


class Attention(nn.Module):
    """Self-attention with one fused projection; the number of heads is fixed in the code."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each [B, heads, tokens, width / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP with residual paths (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int, size: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.block = TransformerBlock(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # [B, tokens, width]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.block(x)[:, 0])


@register
def vit() -> Example:
    return VisionTransformer(width=8, size=16, patch=4, classes=5), image()


class ChannelAttention(nn.Module):
    """Attention between channels, written with einsum and matmul (as in transposed attention, Zamir et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = conv(width, width, 1), conv(width, width, 1), conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))  # [B, C, HW]
        weight = torch.einsum("bct,bdt->bcd", query, key).softmax(-1)
        return torch.matmul(weight, value).view_as(x)


@register
def channel_attention() -> Example:
    return Around(ChannelAttention(8)), image()


class Cumulated(nn.Module):
    """Channel i becomes the sum of channels up to i: no channel can be taken out by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


@register
def cumsum() -> Example:
    return Around(Cumulated()), image()


class FourierMixing(nn.Module):
    """The real part of the Fourier transform over channels (Lee-Thorp et al. 2022, FNet)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=1).real


@register
def fft() -> Example:
    return Around(FourierMixing()), image()
