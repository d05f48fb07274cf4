"""Saliency: which channels of a group go first. The oracle decides how many.

@saliency("mine")
def mine(weight: Tensor, gradient: Tensor | None) -> Tensor:      # [filters, weights] → [filters]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from secateur.compress.dataflow import ChannelGroup
from secateur.compress.dataflow.groups import Index
from secateur.core.errors import BudgetError

Criterion = Callable[[Tensor, "Tensor | None"], Tensor]
_CRITERIA: dict[str, Criterion] = {}
NEEDS_GRADIENT = {"taylor"}


def saliency(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion: from filters [F, weights] and their gradients to one score per filter, larger is kept."""

    def register(criterion: Criterion) -> Criterion:
        _CRITERIA[name] = criterion
        return criterion

    return register


def find(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        BudgetError: unknown name.
    """
    if name not in _CRITERIA:
        raise BudgetError(f'unknown saliency "{name}"', f"choose one of: {', '.join(sorted(_CRITERIA))}")
    return _CRITERIA[name]


@saliency("l1")
def l1(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """Mean |w| per filter, the published criterion."""
    return weight.abs().flatten(1).mean(1)


@saliency("l2")
def l2(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """Root mean square per filter."""
    return weight.square().flatten(1).mean(1).sqrt()


@saliency("taylor")
def taylor(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """|Σ w·∂L/∂w| per filter: first-order change of the loss (Molchanov et al., CVPR 2019, eq. 8)."""
    assert gradient is not None
    return (weight * gradient).flatten(1).sum(1).abs()


@saliency("random")
def random(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """A control: reproducible random scores."""
    seed = int.from_bytes(hashlib.sha256(weight.detach().cpu().numpy().tobytes()).digest()[:4])
    return torch.rand(len(weight), generator=torch.Generator().manual_seed(seed))


def score(
    group: ChannelGroup,
    state: Mapping[str, Tensor],
    criterion: Criterion,
    gradients: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Joint saliency of a group's channels [channels]: the mean over the parameters that produce them of the
    criterion per filter (Ye et al., T-PAMI 2023: inter-layer saliency).

    `state` may be masked: what a filter reads from removed channels is left out, as if it were cut already.
    """
    totals = torch.zeros(group.channels)
    for member in group.members:
        if member.role != "out":
            continue
        weight = state[member.parameter].detach().movedim(member.dim, 0).flatten(1)
        read = weight.any(0) if weight.any() else slice(None)
        weight = weight[:, read]
        gradient = None if gradients is None else gradients[member.parameter].movedim(member.dim, 0).flatten(1)[:, read]
        per_filter = criterion(weight, gradient).float().cpu()
        totals += per_filter[torch.from_numpy(member.index)].mean(1)
    return totals


def lowest(scores: Tensor, count: int) -> Index:
    """The channels with the lowest scores; ties go to the later channel, so that the choice is reproducible."""
    order = np.lexsort((-np.arange(len(scores)), scores.numpy()))
    return np.sort(order[:count]).astype(np.int64)
