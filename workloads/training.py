"""What a built-in workload is made of, and the loop that trains its network: AdamW, one cosine cycle with warm-up,
weights averaged over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from secateur.core.progress import bar, say
from secateur.core.task import Task, Workload
from secateur.workloads.folders import Samples
from secateur.workloads.loader import Loader

Extra = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""A further loss on (the model's whole output, targets), for an auxiliary head."""


@dataclass(frozen=True)
class Recipe:
    """A built-in network, its tasks and data, and the settings it is trained with."""

    name: str
    network: Callable[[], nn.Module]
    tasks: Sequence[Task]
    loader: Callable[[str], Loader | Samples]
    epochs: int
    rate: float = 3e-3
    weight_decay: float = 0.02
    average: float = 0.995
    extra: Extra | None = None
    figures: Callable[[nn.Module], dict[str, float]] | None = None
    """Further figures of the trained network, recorded next to its metrics."""

    def workload(
        self, model: nn.Module, size: Sequence[int], render: Callable[[str, Any], Any] | None = None
    ) -> Workload:
        """The workload of this name: a trained network, the size of its input (without the batch), three splits."""
        train, calibration, test = map(self.loader, ("train", "calibration", "test"))
        return Workload(
            self.name, model, torch.zeros(1, *size), tuple(self.tasks), train, calibration, test, factory=self.network,
            reference=self.name, render=render,
        )  # fmt: skip


def train(recipe: Recipe, epochs: int, bfloat16: bool = False) -> nn.Module:
    """Train a fresh network; returns the exponential moving average of its weights, which generalises best.

    Args:
        bfloat16: compute convolutions in bfloat16: twice as fast on processors that have it, slower on others.
    """
    model, tasks, loader, extra = recipe.network(), recipe.tasks, recipe.loader("train"), recipe.extra
    _lay_out(model, torch.channels_last)
    steps = epochs * len(loader)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, steps))
    averaged = AveragedModel(model, avg_fn=_average(recipe.average), use_buffers=True)
    model.train()
    with bar("training", steps) as progress:
        for epoch in range(epochs):
            sums = dict.fromkeys([task.name for task in tasks], 0.0)
            for inputs, targets in loader:
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    output = model(inputs.contiguous(memory_format=torch.channels_last))
                output = pytree.tree_map(Tensor.float, output)
                values = {task.name: task.loss(output[task.name], targets[task.name]) for task in tasks}
                loss = torch.stack([task.weight * values[task.name] for task in tasks]).sum()
                if extra is not None:
                    loss = loss + extra(output, targets)
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimiser.step()
                schedule.step()
                averaged.update_parameters(model)
                progress.advance()
                for name, value in values.items():
                    sums[name] += float(value.detach()) / len(loader)
            say(f"epoch {epoch + 1}/{epochs}: " + ", ".join(f"{name} {value:.4f}" for name, value in sums.items()))
    _lay_out(averaged.module, torch.contiguous_format)
    return averaged.module.eval()


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) + 1e-3


def _average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average that forgets the untrained start: its memory grows with the steps taken."""

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        weight = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        return torch.lerp(averaged, current, weight) if averaged.is_floating_point() else current

    return average
