"""How published models' code takes one size from another: what is cut along, what stays, and that both are right."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly
from zoo.registry import randomise

from secateur.compress.dataflow import ChannelGroups, trace
from secateur.core.errors import ModelError

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
    """Scores are scaled by the width that is found at run time, which a mask does not change: heads go whole, and the
    stream by as many channels."""

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


PRUNABLE = {
    Apart: [3, 5],
    PositionTable: [3, 5],
    KeyWithoutBias: [15, 3, 5],
    OneAttribute: [15, 3, 6],
    Square: [15, 4, 4],
    WidthApart: [15, 3, 4],
    ListOfSizes: [15, 8],
    Pairs: [15, 5],
    Casting: [15, 8],
    ScaleFromWidth: [3],
    Shortened: [15, 7, 6],
    Gated: [15],
    Windows: [3, 5],
}
"""Channels of the groups that can be cut."""


@pytest.fixture(scope="module", params=list(PRUNABLE), ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest) -> tuple[type, ChannelGroups, Tensor]:
    torch.manual_seed(1)
    model, inputs = Around(request.param).eval(), torch.randn(2, TOKENS, 4)
    for module in model.modules():
        randomise(module)
    return request.param, trace_quietly(model, inputs), inputs


def test_what_can_be_cut_is_found(case: tuple[type, ChannelGroups, Tensor]) -> None:
    kind, groups, _ = case
    assert sorted(group.channels for group in groups.prunable) == sorted(PRUNABLE[kind])
    assert all(group.why_not for group in groups.values() if not group.prunable)


def test_widths_taken_from_the_input_leave_no_layer_whole(case: tuple[type, ChannelGroups, Tensor]) -> None:
    kind, groups, _ = case
    if kind in (Shortened, Gated, Windows):
        reasons = {group.why_not for group in groups.values() if not group.prunable}
        assert reasons <= {"output of the model", "broadcast from a single channel (mul in block)"}, kind


@pytest.mark.parametrize("seed", range(4))
def test_masked_equals_cut(case: tuple[type, ChannelGroups, Tensor], seed: int) -> None:
    _, groups, inputs = case
    keep = random_keep(groups.prunable, seed)
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


def test_a_branch_chosen_while_running_is_refused() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.f(x)
            return torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t - 1, (x,))

    with pytest.raises(ModelError, match=r"chooses while it runs what to compute \(cond\)"):
        trace(Chooses().eval(), torch.randn(2, 4))


def test_concatenated_channels_keep_their_places() -> None:
    """By hand: after cat([a, b]) with 3 and 5 channels, a's are inputs 0..2 of the reader and b's 3..7."""

    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.reader = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.reader(torch.cat([self.a(x), self.b(x)], 1))

    groups = trace(Cat().eval(), torch.randn(2, 4), trial=False)
    read = {name: group.members[-1].index.ravel().tolist() for name, group in groups.items() if name in ("a", "b")}
    assert read == {"a": [0, 1, 2], "b": [3, 4, 5, 6, 7]}


def test_running_statistics_go_with_their_own_channels() -> None:
    """By hand: channels 1 and 3 stay, and so do exactly their mean and variance."""
    norm = nn.BatchNorm1d(4)
    norm.running_mean, norm.running_var = torch.arange(4.0), torch.arange(4.0) + 1
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2)).eval()
    groups = trace(model, torch.randn(2, 3), trial=False)
    small = groups.cut({"0": [1, 3]})
    assert small[1].running_mean.tolist() == [1, 3]
    assert small[1].running_var.tolist() == [2, 4]
    assert torch.equal(small[0].weight, model[0].weight[[1, 3]])


class Widening(nn.Module):
    """Compares its widths to know whether the way around needs a projection, as blocks of Hiera do."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.dim, self.dim_out = dim, dim_out
        self.norm, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim_out)
        self.proj, self.body = nn.Linear(dim, dim_out), nn.Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        y = self.body(x)
        assert x.dim() == 3  # no size of the module's
        if self.dim != self.dim_out:
            x = self.proj(x)
        return self.after(x + torch.tanh(y))


def test_widths_that_a_cut_makes_equal_take_no_other_branch() -> None:
    """The attributes stay what they were: nothing is computed with them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), Widening(12, 24), nn.Linear(24, 3)).eval()
    groups, x = trace(model, torch.randn(2, 5, 4)), torch.randn(2, 5, 4)
    (wide,) = (group for group in groups.prunable if group.channels == 24)
    keep = {wide.name: range(0, 24, 2)}
    small = groups.cut(keep)
    assert (small[1].proj.out_features, small[1].dim, small[1].dim_out) == (12, 12, 24)
    assert_same(masked_outputs(groups, keep, x), outputs(small, x))


class Expanding(nn.Module):
    """Expands only where its ratio is not one, as blocks of EfficientNets do; the ratio is also the squeezed width."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.expand, self.squeeze, self.out = nn.Linear(4, 4 * ratio), nn.Linear(4 * ratio, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if self.ratio != 1:
            x = self.expand(x)
        return self.out(self.squeeze(x).reshape(b, n, -1))


def test_a_ratio_is_no_width() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), Expanding(6), nn.Linear(4, 2)).eval(), torch.randn(2, 5, 3)
    groups = trace(model, x)
    keep = {"1.squeeze": [2]}
    small = groups.cut(keep)
    assert (small[1].squeeze.out_features, small[1].ratio) == (1, 6)
    assert_same(masked_outputs(groups, keep, x), outputs(small, x))


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 over what each filter reads, as NFNets have them."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def test_a_weight_that_needs_two_inputs_is_cut_to_more_than_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), Standardised(48, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    groups = trace(model.eval(), torch.randn(1, 3, 8, 8))
    assert groups["0"].prunable, groups["0"].why_not
