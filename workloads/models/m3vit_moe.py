"""The mixture of experts of M³ViT: routers that know the task, and experts with stacked weights named as FastMoE's.

Liang, Fan, Sarkar et al., NeurIPS 2022 (arXiv 2210.14793); FastMoE: He et al., 2021 (arXiv 2103.13262).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core.experts import ExpertWeights, mix


class Stack(nn.Module):
    """Weights of E linear layers: weight [E, outputs, inputs], bias [E, outputs]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(experts, outputs))


class Experts(nn.Module):
    """h → 4h → h, E times, in FastMoE's words; the hidden width is any."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.htoh4, self.h4toh = Stack(experts, width, hidden), Stack(experts, hidden, width)


class TaskEmbedding(nn.Module):
    """One task's vector, shown to a conditioned router next to each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] → [N, T, width], the same vector everywhere."""
        return self.weight.expand(*x.shape[:-1], -1)


class Router(nn.Module):
    """Scores of all experts: softmax(linear(token)) over E, with noise on the logits while training.

    Args:
        routing: "multi-gate", "conditioned" or "shared" (see `M3ViT`).
        noise: standard deviation of the noise, times 1 / experts.
    """

    def __init__(
        self, tasks: Sequence[str], width: int, experts: int, routing: str, task_width: int, noise: float
    ) -> None:
        super().__init__()
        if routing not in ("multi-gate", "conditioned", "shared"):
            raise ValueError(f'routing is "{routing}": multi-gate, conditioned or shared')
        self.noise = noise / experts
        conditioned = routing == "conditioned"
        names = tasks if routing == "multi-gate" else ["all"]
        inputs = width + task_width * conditioned
        self.gates = nn.ModuleDict({name: nn.Linear(inputs, experts, bias=False) for name in names})
        self.embeddings = nn.ModuleDict({task: TaskEmbedding(task_width) for task in tasks} if conditioned else {})

    def logits(self, x: Tensor, task: str | None) -> Tensor:
        """Tokens [N, T, D] → [N, T, E], without noise."""
        if len(self.embeddings):
            x = torch.cat([x, self.embeddings[str(task)](x)], dim=-1)
        gate = self.gates[str(task) if str(task) in self.gates else "all"]
        result: Tensor = gate(x)
        return result


@dataclass(frozen=True)
class Routing:
    """What the routers' losses need, for each task [tasks, tokens, E]: logits without and with noise, and scores."""

    clean: Tensor
    noisy: Tensor
    scores: Tensor


class MoE(nn.Module):
    """Tokens [N, T, D] and a task → [N, T, D], through the best `top_k` of the experts.

    `kept` holds the router's number of each expert: experts can be taken out while the router, and with it the
    softmax, stays whole. `slots` has one entry for each of the k choices, so that k is a size that can be cut too.
    """

    kept: Tensor
    slots: Tensor

    def __init__(self, width: int, hidden: int, experts: int, top_k: int, router: Router) -> None:
        super().__init__()
        self.router, self.experts = router, Experts(width, hidden, experts)
        self.register_buffer("kept", torch.arange(experts))
        self.register_buffer("slots", torch.arange(top_k))
        self.seen: Routing | None = None

    @property
    def top_k(self) -> int:
        return len(self.slots)

    def weights(self) -> ExpertWeights:
        up, down = self.experts.htoh4, self.experts.h4toh
        return ExpertWeights(up.weight, down.weight, up.bias, down.bias)

    def scores(self, x: Tensor, task: str | None) -> Tensor:
        """[N, T, experts of the router]: softmax over all of them, with noise while training."""
        logits = self.router.logits(x, task)
        return (self._noisy(logits) if self.training else logits).softmax(-1)

    def forward(self, x: Tensor, task: str | None = None) -> Tensor:
        return mix(x, self.scores(x, task), self.kept, self.weights(), self.top_k)

    def forward_tasks(self, x: Tensor, tasks: Sequence[str]) -> Tensor:
        """As `forward` for a batch whose equal parts belong to the tasks, in order."""
        parts = zip(tasks, x.chunk(len(tasks)), strict=True)
        clean = torch.cat([self.router.logits(part, task) for task, part in parts])
        noisy = self._noisy(clean.float()) if self.training else clean
        scores = noisy.softmax(-1)
        if self.training:
            seen = (tensor.reshape(len(tasks), -1, tensor.shape[-1]) for tensor in (clean.float(), noisy, scores))
            self.seen = Routing(*seen)
        return mix(x, scores, self.kept, self.weights(), self.top_k)

    def _noisy(self, logits: Tensor) -> Tensor:
        return logits + torch.randn_like(logits) * self.router.noise
