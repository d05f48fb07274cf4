"""Blocks whose code takes one size from another, as published models' does; each maps [N, tokens, 15] to the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STREAM, TOKENS = 15, 5


class Block(nn.Module):
    """[N, tokens, 15] → the same: three heads of five channels, unless a case says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.proj = nn.Linear(STREAM, STREAM)

    def split(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return x.view(b, n, self.heads, -1).transpose(1, 2)


class Apart(Block):
    """q and k in one projection, v in another; the width of all of them is that of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v = nn.Linear(STREAM, 2 * STREAM), nn.Linear(STREAM, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k = self.qk(x).reshape(b, n, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        v = self.v(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        weights = weights / weights.sum(-1, keepdim=True)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class PositionTable(Block):
    """Biases for each pair of positions, looked up in a table of [pairs, heads]; a bias of q and v only."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(STREAM, 3 * STREAM, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(STREAM)), nn.Parameter(torch.zeros(STREAM))
        self.register_buffer("k_bias", torch.zeros(STREAM))
        self.table = nn.Parameter(torch.zeros(9, self.heads))
        self.register_buffer("index", torch.arange(TOKENS)[:, None] - torch.arange(TOKENS) + TOKENS - 1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class KeyWithoutBias(Block):
    """The bias of the keys is set to zero in a copy of that of q, k and v (torchvision's Swin v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(STREAM, 3 * STREAM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = self.qkv.bias.clone()
        third = bias.numel() // 3
        bias[third : 2 * third].zero_()
        q, k, v = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))


class OneAttribute(nn.Module):
    """Each head has a projection of its own, and `key` counts the channels of q and k in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = 3, 6
        self.heads = nn.ModuleList(nn.Linear(STREAM, 12) for _ in range(2))
        self.proj = nn.Linear(12, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for head in self.heads:
            q, k, v = head(x).split([self.key, self.key, self.value], -1)
            found.append((q @ k.transpose(-2, -1)).softmax(-1) @ v)
        return self.proj(torch.cat(found, -1))


class Square(nn.Module):
    """As many heads as each is wide; one attribute says how wide those of q, k and v are."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.q, self.k, self.v = (nn.Linear(STREAM, 16) for _ in range(3))
        self.proj = nn.Linear(16, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.width)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
        return self.proj(x.reshape(*x.shape[:2], -1))


class WidthApart(nn.Module):
    """Where the split of v is wrong, the tokens become more or fewer (`-1`), and only the module around it notices."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.head_size, self.all_heads = 3, 4, 12
            self.q, self.k, self.v = (nn.Linear(STREAM, 12) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            shape = (len(x), -1, self.heads, self.head_size)
            q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
            x = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
            return x.reshape(*x.shape[:2], self.all_heads)

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.proj = self.Heads(), nn.Linear(12, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attention(x))


class ListOfSizes(nn.Module):
    """A list of sizes to split by beside an attribute of the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.parts = 8, (8, 8, 2)
        self.f, self.proj = nn.Linear(STREAM, 18), nn.Linear(8, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        q, context, gates = torch.split(self.f(x), self.parts, -1)
        return self.proj(q * context * gates[..., :1] + q * gates[..., 1:])


class Pairs(nn.Module):
    """Even and odd channels, rotated; then a convolution over the tokens that takes every channel alike."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.mix, self.proj = nn.Linear(STREAM, 10), nn.Conv1d(TOKENS, TOKENS, 1), nn.Linear(10, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(x)
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return self.proj(self.mix(x + turned))


class Casting(Block):
    """A part that autocast is kept from, and one without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(STREAM, 8)
        self.proj = nn.Linear(8, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.f(x).relu()
        with torch.no_grad():
            scale = x.mean((0, 1))
        return self.proj(x * scale)


class ScaleFromWidth(Block):
    """Scores are scaled by the width that is found at run time, which masks follow; heads and their width make the
    stream's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(STREAM, 3 * STREAM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Shortened(nn.Module):
    """Keys see every second token (SegFormer): the width of what comes out is taken from what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.q, self.k = nn.Conv1d(STREAM, STREAM, 2, 2), nn.Linear(STREAM, 7), nn.Linear(STREAM, 7)
        self.v, self.proj = nn.Linear(STREAM, 6), nn.Linear(6, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        short = self.reduce(x.transpose(1, 2)).reshape(b, c, -1).transpose(1, 2)
        return self.proj((self.q(x) @ self.k(short).transpose(1, 2)).softmax(-1) @ self.v(short))


class Gated(nn.Module):
    """Parts of one projection, split off by the width of the input, and a gate (FocalNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.proj = nn.Linear(STREAM, 2 * STREAM + 1), nn.Linear(STREAM, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        q, context, gate = torch.split(self.split(x), (c, c, 1), -1)
        return self.proj(q * context.mean(1, keepdim=True) * gate)


class Windows(Block):
    """Heads of windows (VOLO): neither they nor what is merged again are as wide as the input, but one head is."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(STREAM, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        windows = F.unfold(self.v(x).transpose(1, 2)[..., None], (3, 1), padding=(1, 0))
        heads = windows.reshape(b, self.heads, c // self.heads, 3, n).relu()
        whole = F.fold(heads.reshape(b, c * 3, n), (n, 1), (3, 1), padding=(1, 0))
        return self.proj(whole[..., 0].transpose(1, 2))


class Around(nn.Module):
    def __init__(self, kind: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(4, STREAM), kind(), nn.Linear(STREAM, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.block(x)).mean(1))
