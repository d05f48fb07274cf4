"""Weighting of the tasks' losses: fixed, by their uncertainty, or by how fast each still falls.

fixed         Σ_t w_t·L_t
uncertainty   Σ_t exp(-s_t)·L_t + s_t, with s_t = log σ_t² learnt and first such that exp(-s_t) = w_t
              (Kendall, Gal and Cipolla, CVPR 2018, eq. 7, times two)
dwa           Σ_t λ_t·w_t·L_t, with λ = K·softmax(r / 2) and r_t = L_t(e-1) / L_t(e-2) of the last two epochs
              (dynamic weight average; Liu, Johns and Davison, CVPR 2019, eq. 7)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import BudgetError
from secateur.core.task import Task

TEMPERATURE = 2.0


class Weighting(nn.Module):
    """Σ_t w_t·L_t. `forward` takes the losses [tasks] in the order of the tasks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.names = [task.name for task in tasks]
        self.fixed: Tensor
        self.register_buffer("fixed", torch.tensor([task.weight for task in tasks]), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        return (self.weights() * losses).sum()

    def weights(self) -> Tensor:
        """The factor on each task's loss now."""
        return self.fixed

    def start_epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the epochs so far, as `finetune` returns them."""


class Uncertainty(Weighting):
    """A task of weight 0 stays without any."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(-self.fixed.clamp_min(1e-6).log())

    def forward(self, losses: Tensor) -> Tensor:
        return super().forward(losses) + (self.log_variance * (self.fixed > 0)).sum()

    def weights(self) -> Tensor:
        return (-self.log_variance).exp() * (self.fixed > 0)


class DynamicAverage(Weighting):
    """In the first two epochs, λ = 1."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.factors = [1.0] * len(self.names)

    def weights(self) -> Tensor:
        return self.fixed * torch.tensor(self.factors, device=self.fixed.device)

    def start_epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        if len(history) >= 2:
            before, last = (history[number]["tasks"] for number in (-2, -1))
            rates = torch.tensor([last[name] / max(abs(before[name]), 1e-12) for name in self.names])
            self.factors = (len(self.names) * torch.softmax(rates / TEMPERATURE, 0)).tolist()


WEIGHTINGS: Mapping[str, type[Weighting]] = {"fixed": Weighting, "uncertainty": Uncertainty, "dwa": DynamicAverage}


def check_weighting(name: str) -> None:
    """Raises:
    BudgetError: no such weighting.
    """
    if name not in WEIGHTINGS:
        raise BudgetError(f'unknown weighting of the tasks "{name}"', f"choose one of: {', '.join(WEIGHTINGS)}")
