"""Losses of the routers: that all experts are used, and that tasks differ in which.

importance and load: squared coefficients of variation of the gates' sums and of the expected numbers of tokens, over
experts (Shazeer et al., ICLR 2017; as M³ViT uses them). They are taken here over the tokens of all tasks together: each
gate on its own would make every task use every expert.
sharing: minus the mutual information of task and expert (Chen et al., Mod-Squad, CVPR 2023, eq. 5): small when all
experts are used as a whole and each task uses few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.workloads.models.m3vit_moe import MoE, Routing


def router_losses(layers: Sequence[MoE]) -> dict[str, Tensor]:
    """{"balance": importance + load, "sharing": -I(task; expert)}, means over the mixtures that ran."""
    seen = [(layer.seen, layer) for layer in layers if layer.seen is not None]
    balance = [balance_loss(found, layer.top_k, layer.router.noise) for found, layer in seen]
    sharing = [sharing_loss(found.scores) for found, _ in seen]
    for layer in layers:
        layer.seen = None
    return {"balance": torch.stack(balance).mean(), "sharing": torch.stack(sharing).mean()}


def balance_loss(seen: Routing, k: int, noise: float) -> Tensor:
    """cv²(importance) + cv²(load) over experts."""
    experts = seen.scores.shape[-1]
    best = seen.noisy.flatten(0, 1).topk(min(k + 1, experts), dim=-1)
    scores = seen.scores.flatten(0, 1)
    gates = torch.zeros_like(scores).scatter(-1, best.indices[:, :k], scores.gather(-1, best.indices[:, :k]))
    if k >= experts or noise <= 0:
        return cv_squared(gates.sum(0))
    load = _chance_in_top_k(seen.clean.flatten(0, 1), seen.noisy.flatten(0, 1), best.values, k, noise)
    return cv_squared(gates.sum(0)) + cv_squared(load.sum(0))


def _chance_in_top_k(clean: Tensor, noisy: Tensor, best: Tensor, k: int, noise: float) -> Tensor:
    """P(an expert is among the best k if its own noise is drawn anew), [T, E]: differentiable where a count is not."""
    if_in, if_out = best[:, k : k + 1], best[:, k - 1 : k]
    threshold = torch.where(noisy > if_in, if_in, if_out)
    return 0.5 * (1 + torch.erf((clean - threshold) / (noise * math.sqrt(2))))


def cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation; 0 for a single value."""
    if values.numel() == 1:
        return values.sum() * 0
    return values.var() / (values.mean().square() + 1e-10)


def sharing_loss(scores: Tensor) -> Tensor:
    """-I(task; expert) for scores [tasks, tokens, E], every task equally likely."""
    given = scores.mean(1)  # P(expert | task) [tasks, E]
    return _entropy(given).mean() - _entropy(given.mean(0))


def _entropy(chances: Tensor) -> Tensor:
    return -(chances * chances.clamp_min(1e-9).log()).sum(-1)
