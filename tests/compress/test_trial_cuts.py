"""Trial cuts tell what is wrong from what is only rounded."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from traces import trace_quietly

STEEP = 1e5
"""What multiplies the rounding of float32 to far more than a trial accepts."""


class Steep(nn.Module):
    """[N, 6] → [N, 4]: the last bits of a long sum decide."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 300), nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(STEEP * self.outer(self.inner(x)))


class Slightly(nn.Module):
    """[N, 6] → [N, 4]: a little of the channels is added, by the logarithm of how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 300), nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        values = self.inner(x)
        return self.outer(values) + 1e-3 * values.sum(1, keepdim=True) / math.log(values.shape[1])


def test_rounding_that_a_model_multiplies_is_no_wrong_cut() -> None:
    torch.manual_seed(0)
    groups = trace_quietly(Steep().eval(), torch.randn(8, 6))
    assert [group.channels for group in groups.prunable] == [300]


def test_what_float64_does_not_explain_stays_whole() -> None:
    torch.manual_seed(0)
    groups = trace_quietly(Slightly().eval(), torch.randn(8, 6))
    assert not groups.prunable
    assert "differs from the masked model's" in groups["inner"].why_not


class Selects(nn.Module):
    """[N, 400, 6] → [N, 3, 4]: the three tokens of the best scores, which the last bits of a long sum decide."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.score, self.outer = nn.Linear(6, 300), nn.Linear(300, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        best = torch.sin(STEEP * self.score(self.inner(x))).topk(3, 1)[1]
        return self.outer(x.gather(1, best.expand(-1, -1, 6)))


def test_rounding_that_chooses_something_else_is_no_wrong_cut() -> None:
    torch.manual_seed(0)
    groups = trace_quietly(Selects().eval(), torch.randn(8, 400, 6))
    assert [group.channels for group in groups.prunable] == [300]


class Queries(nn.Module):
    """torch's own encoder-decoder checks that what it is given is as wide as its `d_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.queries = nn.Linear(5, 24), nn.Embedding(5, 24)
        self.inner, self.head = nn.Transformer(24, 4, 1, 1, 40, 0.0, batch_first=True), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x), self.queries.weight[None].repeat(len(x), 1, 1)))


def test_a_width_that_torch_checks_can_be_cut() -> None:
    torch.manual_seed(0)
    groups = trace_quietly(Queries().eval(), torch.randn(2, 7, 5))
    assert {4, 6, 40} <= {group.channels for group in groups.prunable}
    small = groups.cut({group.name: range(group.channels // 2) for group in groups.prunable})
    assert small.inner.d_model == 2 * 3
    small(torch.randn(2, 7, 5))
