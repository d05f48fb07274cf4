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
