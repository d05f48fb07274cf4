"""Structures that a review brought: each was kept whole, priced wrongly, or ended in an error before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly

from secateur.compress.dataflow.costs import CostModel
from secateur.profiles.count import count


class Around(nn.Module):
    """[N, 3, 8, 8] → a stem, the middle, an average, and a head."""

    def __init__(self, middle: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 12, 3, padding=1), middle, nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).relu()).flatten(2).mean(2))


class Last(nn.Module):
    """What a recurrent layer remembers of all pixels."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        state = self.layer(x.flatten(2).mT)[1]
        return (state[0] if isinstance(state, tuple) else state)[-1][..., None, None]


class Handed(nn.Module):
    """One recurrent layer begins where another one ended."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(12, 10, batch_first=True), nn.GRU(12, 10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).mT
        return self.second(pixels, self.first(pixels)[1])[0].mT[..., None]


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Weights(nn.Module):
    """Two matrices that the code multiplies by itself."""

    def __init__(
        self, product: Callable[[Tensor, Tensor, Tensor], Tensor], first: tuple[int, ...], second: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.product, self.first, self.second = (
            product,
            nn.Parameter(torch.randn(first)),
            nn.Parameter(torch.randn(second)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.flatten(2).mT, self.first, self.second).mT[..., None]


MIDDLES: dict[str, tuple[Any, ...]] = {
    "the last state of an LSTM": (lambda: Last(nn.LSTM(12, 10, batch_first=True)), 10),
    "the last state of a GRU of two layers": (lambda: Last(nn.GRU(12, 10, 2, batch_first=True)), 10),
    "the last state of a plain one": (lambda: Last(nn.RNN(12, 10, batch_first=True)), 10),
    "a state that is handed on": (Handed, 10),
    "normalised": (lambda: Of(lambda x: F.normalize(x, dim=1)), 12),
    "less than the largest": (lambda: Of(lambda x: x.amax((2, 3), keepdim=True).expand_as(x) - x), 12),
    "divided by itself": (lambda: Of(lambda x: torch.true_divide(x, x + 1)), 12),
    "to the power of -1": (lambda: Of(lambda x: x * (x + 1) ** -1), 12),
    "instance norm without weights": (lambda: nn.InstanceNorm2d(12), 12),
    "products with matrices": (lambda: Weights(lambda x, a, b: (x @ a).relu() @ b, (12, 14), (14, 10)), 10, 14),
    "products with turned ones": (
        lambda: Weights(lambda x, a, b: (x @ a.T).relu() @ b.t(), (14, 12), (10, 14)),
        10,
        14,
    ),
    "matrices on the left": (lambda: Weights(lambda x, a, b: (b @ (a @ x.mT).relu()).mT, (14, 12), (10, 14)), 10, 14),
    "einsum with matrices": (
        lambda: Weights(
            lambda x, a, b: torch.einsum("nph,ho->npo", torch.einsum("npc,hc->nph", x, a).relu(), b), (14, 12), (14, 10)
        ),
        10,
        14,
    ),
    "an expert each": (
        lambda: Weights(lambda x, a, b: ((x[:, None] @ a).relu() @ b).sum(1), (3, 12, 14), (3, 14, 10)),
        10,
        14,
    ),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_stands_in_the_middle_can_be_cut(name: str) -> None:
    torch.manual_seed(0)
    middle, channels, *hidden = MIDDLES[name]
    model, images = Around(middle(), channels).double().eval(), torch.rand(2, 3, 8, 8, dtype=torch.double)
    groups = trace_quietly(model, images)
    assert {group.channels for group in groups.prunable} >= {12, channels, *hidden}
    for seed in range(3):
        keep = random_keep(groups.prunable, seed)
        assert_same(outputs(groups.cut(keep), images), masked_outputs(groups, keep, images))


@pytest.mark.parametrize(("width", "heads", "batch"), [(32, 4, 2), (64, 4, 4), (32, 2, 3)])
def test_heads_of_torchs_own_attention_whatever_the_batch(width: int, heads: int, batch: int) -> None:
    """Its scores are of batch times heads matrices: once taken for one size where that is a head's width."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, heads, 48, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Linear(width, 3)).eval()
    tokens = torch.randn(batch, 5, width)
    groups, found = trace_quietly(model, tokens), []
    costs = CostModel(groups)
    for seed in range(3):
        keep = random_keep(groups.prunable, seed)
        small = groups.cut(keep)
        assert_same(outputs(small, tokens), masked_outputs(groups, keep, tokens))
        modelled = costs.costs(costs.widths({name: len(kept) for name, kept in keep.items()}))
        found.append((modelled.params, count(small, tokens).costs.params))
    assert all(one == other for one, other in found)


class Sized(nn.Module):
    """Attributes that happen to be as large as a layer is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size, self.num_classes, self.patch_size = 16, 24, 24
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def test_attributes_that_count_something_else_stay() -> None:
    groups = trace_quietly(Sized().eval(), torch.randn(2, 3, 16, 16))
    small = groups.cut(random_keep(groups.prunable, 0))
    assert (small.img_size, small.num_classes, small.patch_size) == (16, 24, 24)
