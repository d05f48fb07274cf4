"""Attention as people write it: where the sizes of heads sit differs from one repository to the next."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, TOKENS = 24, 6


class Fused(nn.Module):
    """One projection for q, k and v; heads and their width in attributes."""

    def __init__(self, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, head_dim, heads * head_dim
        self.scale = head_dim**-0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * self.inner), nn.Linear(self.inner, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, self.inner))


class ByHand(Fused):
    """Scores are divided by what the code computes from the width of a head each time."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, self.inner))


class FromOutside(nn.Module):
    """The width inside is taken from the width outside."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Grouped(nn.Module):
    """Four query heads share two of key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_heads, self.shared, self.head_dim = 2, 3, 4
        self.q = nn.Linear(WIDTH, 24)
        self.k, self.v, self.proj = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.kv_heads * self.shared, self.head_dim).transpose(1, 2)
        k, v = (layer(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2) for layer in (self.k, self.v))
        k, v = k.repeat_interleave(self.shared, 1), v.repeat_interleave(self.shared, 1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Torch(nn.Module):
    """torch's own module, whose code takes the width from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Einsum(nn.Module):
    """Unequal parts of one projection, sizes in a tuple; products by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.parts = 3, (5, 5, 7)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * 17), nn.Linear(21, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, -1).split(self.parts, -1)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return self.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(b, n, -1))


class Recurrent(nn.Module):
    """No attention, but the same question: the hidden size is an attribute, gates are rows of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.proj = nn.LSTM(WIDTH, 10, bidirectional=True, batch_first=True), nn.Linear(20, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.lstm(x)[0])


class Constant(nn.Module):
    """The number of heads and their width are written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 72), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(-1, TOKENS, 3, 4, 6).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, 24))


class Around(nn.Module):
    """[N, tokens, 5] → [N, 3]: embedded, two residual blocks of the given kind, a head."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList([block(), block()])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x.mean(1))
