"""How published models' code takes one size from another: what is cut along, what stays, and that both are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sizes_models import (
    TOKENS,
    Apart,
    Around,
    Casting,
    Gated,
    KeyWithoutBias,
    ListOfSizes,
    OneAttribute,
    Pairs,
    PositionTable,
    ScaleFromWidth,
    Shortened,
    Square,
    WidthApart,
    Windows,
)
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly
from zoo.registry import randomise

from secateur.compress.dataflow import ChannelGroups, trace
from secateur.core.errors import ModelError

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
    ScaleFromWidth: [3, 5],
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


@pytest.mark.parametrize("name", ["head_num", "nhead", "heads"])
def test_heads_are_counted_by_what_is_called_so(name: str) -> None:
    """As many heads as each is wide: the size alone does not tell what an attribute counts."""

    class Named(Square):
        def __init__(self) -> None:
            super().__init__()
            del self.width
            setattr(self, name, 4)

        def forward(self, x: Tensor) -> Tensor:
            shape = (*x.shape[:-1], getattr(self, name), -1)
            q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
            x = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
            return self.proj(x.flatten(2))

    torch.manual_seed(1)
    groups = trace_quietly(Around(Named).eval(), torch.randn(2, TOKENS, 4))
    assert sorted(group.channels for group in groups.prunable) == [4, 4, 4, 15]


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


@pytest.mark.parametrize("how", ["assert", "raise"])
def test_a_width_that_is_only_checked_can_be_cut(how: str) -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim, self.proj = 15, nn.Linear(15, 15)

        def forward(self, x: Tensor) -> Tensor:
            if how == "assert":
                assert x.shape[-1] == self.dim, "another width"
            elif x.size(-1) != self.dim:
                raise ValueError("another width")
            return self.proj(x)

    groups = trace_quietly(Around(Checks).eval(), torch.randn(2, TOKENS, 4))
    assert [group.channels for group in groups.prunable] == [15]
    small = groups.cut({groups.prunable[0].name: [0, 3, 4]})
    assert small.block.dim == 3


def test_a_number_that_is_as_large_as_a_width_by_coincidence_stays() -> None:
    """Frames of a clip that are shifted (Lin et al., TSM, ICCV 2019): 8 of them, as many as channels."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.segments = 8

        def forward(self, x: Tensor) -> Tensor:
            count, c, h, w = x.shape
            x = x.view(count // self.segments, self.segments, c, h, w)
            return torch.cat([x[:, 1:], x[:, :1]], 1).view(count, c, h, w)

    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Shift(), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    inputs = torch.randn(16, 3, 5, 5)
    groups = trace_quietly(model, inputs)
    assert [group.channels for group in groups.prunable] == [8]
    keep = {"0": [1, 2, 5]}
    small = groups.cut(keep)
    assert small[1].segments == 8
    assert_same(outputs(small, inputs), masked_outputs(groups, keep, inputs))
