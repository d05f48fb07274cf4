"""Numbers that the code computes from sizes, as attention written by hand does: masks follow what a cut would use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly

from secateur.compress.dataflow.channel_groups import ChannelGroups

Scores = Callable[[Any, Tensor, Tensor], Tensor]
WRITTEN: dict[str, Scores] = {
    "divided by the root of an attribute": lambda own, q, k: q @ k.mT / math.sqrt(own.width),
    "times a power of an attribute": lambda own, q, k: (q @ k.mT) * own.width**-0.5,
    "divided by the root of a shape": lambda own, q, k: torch.matmul(q, k.mT) / math.sqrt(q.size(-1)),
    "the query alone": lambda own, q, k: (q * own.width**-0.5) @ k.mT,
    "both sides": lambda own, q, k: (q * own.width**-0.5) @ (k.mT / math.sqrt(k.shape[-1])),
    "divided by the width": lambda own, q, k: q @ k.mT / own.width,
    "kept from the start": lambda own, q, k: q @ k.mT * own.scale,
}


class Attention(nn.Module):
    """Two heads of eight channels, scores as they are `written`."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.heads, self.width, self.scale, self.written = 2, 8, 8**-0.5, written
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(len(x), -1, self.heads, self.width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = WRITTEN[self.written](self, q, k).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """An image as tokens, attention, two heads."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 16, 2, 2), Attention(written)
        self.left, self.right = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.patches(x).flatten(2).mT
        pooled = (tokens + self.attention(tokens)).mean(1)
        return {"left": self.left(pooled), "right": self.right(pooled)}


def traced(written: str) -> tuple[ChannelGroups, Tensor]:
    torch.manual_seed(0)
    model, images = Tokens(written).double(), torch.randn(2, 3, 8, 8, dtype=torch.double)
    for layer in (model.attention.query, model.attention.key):  # large scores, so that their scale shows
        nn.init.normal_(layer.weight, std=1.0)
    return trace_quietly(model, images), images


@pytest.mark.parametrize("written", WRITTEN)
def test_a_cut_of_the_width_of_heads_computes_what_its_mask_does(written: str) -> None:
    groups, images = traced(written)
    widths = next(group for group in groups.prunable if group.channels == 8)
    assert any(member.parameter == "attention.query.weight" for member in widths.members)
    for seed in range(4):
        keep = random_keep(groups.prunable, seed)
        assert_same(outputs(groups.cut(keep), images), masked_outputs(groups, keep, images))
    assert_same(masked_outputs(groups, {}, images), outputs(groups.model, images))


@pytest.mark.parametrize(
    ("written", "powers"),
    [
        ("divided by the root of an attribute", [0.5]),
        ("the query alone", [-0.5]),
        ("both sides", [-0.5, 0.5]),
        ("divided by the width", [1.0]),
        ("kept from the start", []),
    ],
)
def test_only_numbers_that_follow_a_size_are_taken_for_such(written: str, powers: list[float]) -> None:
    groups, _ = traced(written)
    assert [scale.power for scale in groups.scales] == powers


def test_a_number_is_not_what_masks_leave_out_of_account() -> None:
    """The mask of fewer channels divides by the root of as many: without that, scores would come out too small."""
    groups, images = traced("divided by the root of an attribute")
    name = next(group.name for group in groups.prunable if group.channels == 8)
    plain = ChannelGroups(
        groups.model, groups.graphs, groups.labels, groups.components, groups.groups, groups.dead, groups.trains,
        groups.bindings,
    )  # fmt: skip
    keep = {name: range(2)}
    first, second = masked_outputs(groups, keep, images)[0], masked_outputs(plain, keep, images)[0]
    assert float((first - second).abs().max()) > 1e-3
