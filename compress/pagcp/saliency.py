"""Saliency: which channels of a group go first. The oracle decides how many.

@saliency("mine")
def mine(weight: Tensor, gradient: Tensor | None) -> Tensor:      # [filters, weights] → [filters]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from secateur.compress.dataflow import ChannelGroup
from secateur.compress.dataflow.groups import Index, Member
from secateur.core.errors import BudgetError

Function = Callable[[Tensor, "Tensor | None"], Tensor]
Needs = Literal["weight", "gradient", "fisher", "scale", "reconstruction"]


@dataclass(frozen=True)
class Criterion:
    """A registered criterion, and what it is given besides the filters' weights.

    `needs`: "weight" nothing; "gradient" and "fisher" the gradient of the weighted task losses with respect to the
    weights, and its square, summed over calibration batches; "scale" is given the scales of the channels' norms in
    place of filters; "reconstruction" judges whole groups.
    """

    function: Function
    needs: Needs = "weight"


_CRITERIA: dict[str, Criterion] = {}


def saliency(name: str, needs: Needs = "weight") -> Callable[[Function], Function]:
    """Register a criterion: from filters [F, weights] and what it needs of them to one score per filter, larger is
    kept."""

    def register(function: Function) -> Function:
        _CRITERIA[name] = Criterion(function, needs)
        return function

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


@saliency("taylor", needs="gradient")
def taylor(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """|Σ w·∂L/∂w| per filter: first-order change of the loss (Molchanov et al., CVPR 2019, eq. 8)."""
    assert gradient is not None
    return (weight * gradient).flatten(1).sum(1).abs()


@saliency("fisher", needs="fisher")
def fisher(weight: Tensor, squared: Tensor | None) -> Tensor:
    """Σ w²·E[(∂L/∂w)²] / 2 per filter: second-order change of the loss, the Hessian's diagonal taken as that of the
    empirical Fisher information (Theis et al., 2018)."""
    assert squared is not None
    return (weight.square() * squared).flatten(1).sum(1) / 2


@saliency("bn", needs="scale")
def bn(scale: Tensor, gradient: Tensor | None) -> Tensor:
    """|γ| of the norms that scale a channel (network slimming, Liu et al., ICCV 2017); L1 where there is none."""
    return scale.abs().flatten(1).mean(1)


@saliency("reconstruction", needs="reconstruction")
def reconstruction(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """How badly the next layers do without (see reconstruction.py); L1 where no layer that can be solved reads."""
    return l1(weight, gradient)


@saliency("random")
def random(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """A control: reproducible random scores."""
    seed = int.from_bytes(hashlib.sha256(weight.detach().cpu().numpy().tobytes()).digest()[:4])
    return torch.rand(len(weight), generator=torch.Generator().manual_seed(seed))


def score(
    group: ChannelGroup,
    state: Mapping[str, Tensor],
    criterion: Criterion,
    evidence: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Joint saliency of a group's channels [channels]: the mean over the parameters that produce them of the
    criterion per filter (Ye et al., T-PAMI 2023: inter-layer saliency).

    `state` may be masked: what a filter reads from removed channels is left out, as if it were cut already.

    Args:
        evidence: what `sensitivity.evidence` found for the criterion.
    """
    if criterion.needs == "reconstruction" and evidence is not None and group.name in evidence:
        return evidence[group.name]
    function, members = criterion.function, list(_filters(group))
    if criterion.needs == "scale":
        scales = list(_scales(group, state))
        function, members = (criterion.function, scales) if scales else (l1, members)
    given = evidence if criterion.needs in ("gradient", "fisher") else None
    totals = torch.zeros(group.channels)
    for member in members:
        weight = state[member.parameter].detach().movedim(member.dim, 0)
        weight = weight.reshape(len(weight), -1)
        read = weight.any(0) if weight.any() else slice(None)
        weight, found = weight[:, read], None
        if given is not None:
            found = given[member.parameter].movedim(member.dim, 0).reshape(len(weight), -1)[:, read]
        per_filter = function(weight, found).float().cpu()
        totals += per_filter[torch.from_numpy(member.index)].mean(1)
    return totals


def _filters(group: ChannelGroup) -> Iterator[Member]:
    return (member for member in group.members if member.role == "out")


def _scales(group: ChannelGroup, state: Mapping[str, Tensor]) -> Iterator[Member]:
    """The scales of the norms: one weight per channel, with a shift beside it (a PReLU's slope has none)."""
    for member in group.members:
        path, _, attribute = member.parameter.rpartition(".")
        if member.role == "bound" and attribute == "weight" and f"{path}.bias" in state:
            yield member


def lowest(scores: Tensor, count: int) -> Index:
    """The channels with the lowest scores; ties go to the later channel, so that the choice is reproducible."""
    order = np.lexsort((-np.arange(len(scores)), scores.numpy()))
    return np.sort(order[:count]).astype(np.int64)
