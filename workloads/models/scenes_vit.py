"""The multi-task vision transformer of `scenes-vit`: plain pre-norm blocks, one light dense head per task.

Dosovitskiy et al., An image is worth 16×16 words (ICLR 2021); heads with sub-pixel convolution (Shi et al., CVPR 2016).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4
"""Pixels along the side of what one token stands for."""
WIDTH = 96
DEPTH = 6
HEADS = 3


class Attention(nn.Module):
    """Self-attention [N, T, D] → [N, T, D]; query, key and value come from one linear layer.

    The scale belongs to the trained width of a head: it stays when channels of the heads are removed.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, _ = x.shape
        query, key, value = self.qkv(x).reshape(samples, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)  # [N, heads, T, D / heads]
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class Stem(nn.Sequential):
    """[N, 3, H, W] → [N, D, H/4, W/4]: a few convolutions instead of one, with which transformers learn faster (Xiao et
    al., Early convolutions help transformers see better, NeurIPS 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__(
            *_conv_bn_relu(3, width // 4, 2),
            *_conv_bn_relu(width // 4, width // 2, 2),
            *_conv_bn_relu(width // 2, width, 1),
            nn.Conv2d(width, width, 1),
        )


def _conv_bn_relu(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class DenseHead(nn.Sequential):
    """Tokens as a map [N, D, H, W] → [N, outputs, 4·H, 4·W]: every token gives its patch's pixels, which a convolution
    then reconciles across patches."""

    def __init__(self, width: int, outputs: int, hidden: int = 16) -> None:
        super().__init__(
            nn.Conv2d(width, hidden * PATCH**2, 1),
            nn.PixelShuffle(PATCH),
            nn.ReLU(inplace=True),
            *_conv_bn_relu(hidden, hidden, 1),
            nn.Conv2d(hidden, outputs, 1),
        )


class ScenesViT(nn.Module):
    """[N, 3, size, size] in 0..1 → {"segmentation": logits [N, K, size, size], "depth": metres [N, 1, size, size],
    "normals": unit vectors [N, 3, size, size], "edges": logits [N, 1, size, size]}."""

    def __init__(
        self, classes: int, size: int = 64, width: int = WIDTH, depth: int = DEPTH, heads: int = HEADS
    ) -> None:
        super().__init__()
        self.patches = Stem(width)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.segmentation = DenseHead(width, classes)
        self.depth = DenseHead(width, 1)
        self.normals = DenseHead(width, 3)
        self.edges = DenseHead(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        patches = self.patches(2 * x - 1)  # [N, D, H, W]
        tokens = patches.flatten(2).transpose(1, 2) + self.position
        tokens = self.norm(self.blocks(tokens))
        features = tokens.transpose(1, 2).unflatten(2, patches.shape[2:])
        return {
            "segmentation": self.segmentation(features),
            "depth": 4 * torch.exp(self.depth(features)),  # scenes are about four metres deep
            "normals": F.normalize(self.normals(features), dim=1),
            "edges": self.edges(features),
        }
