"""The published PAGCP loop as its description tells it, written apart from ours: copy the model, cut it, evaluate all
calibration data, one ratio after the other. Slow on purpose; counts the forward FLOPs that its candidates cost.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from secateur.compress.dataflow import ChannelGroup, ChannelGroups, trace
from secateur.compress.pagcp.settings import RATIOS
from secateur.core.inputs import batch_size
from secateur.core.predict import predict
from secateur.core.task import Batch, Task, Workload
from secateur.profiles.count import count


@dataclass
class Published:
    """What the loop decided: groups in order, τ of each, channels kept where the filter let them pass."""

    plan: list[str]
    taus: list[float] = field(default_factory=list)
    chosen: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    forward_flops: float = 0.0


@torch.no_grad()
def plain_losses(model: nn.Module, batches: list[Batch], tasks: tuple[Task, ...]) -> dict[str, float]:
    model.eval()
    found = [(predict(model, inputs, tasks), targets) for inputs, targets in batches]
    return {
        task.name: sum(float(task.loss(output[task.name], targets[task.name])) for output, targets in found)
        / len(found)
        for task in tasks
    }


def naive_scores(groups: ChannelGroups, group: ChannelGroup) -> np.ndarray:
    """Mean over the members that produce the channels of the mean |w| per filter."""
    tensors, members = dict(groups.model.named_parameters()), [m for m in group.members if m.role == "out"]
    scores = [
        tensors[m.parameter].detach().movedim(m.dim, 0).abs().flatten(1).mean(1).numpy()[m.index].mean(1)
        for m in members
    ]
    return np.mean(scores, axis=0)


def naive_lambda(tau: float, bound: float, groups: int) -> float:
    candidates = np.linspace(0.5, 2.5, 200_001)
    return float(candidates[np.abs(np.exp(sum(np.log1p(tau * candidates**i) for i in range(groups))) - bound).argmin()])


def published_procedure(workload: Workload, batches: list[Batch], tau: float, bound: float) -> Published:
    """Run the loop on a copy of the workload's model.

    Args:
        tau, bound: τ0 and T of Ye et al., T-PAMI 2023.
    """
    example, tasks, names = workload.example_input, workload.tasks, workload.task_names
    groups = trace(workload.model, example, names)
    flops = count(workload.model, example, names).costs.flops
    samples = sum(batch_size(inputs) for inputs, _ in batches)

    def without(now: ChannelGroups, name: str, gone: int) -> tuple[nn.Module, list[int]]:
        keep = np.sort(np.argsort(naive_scores(now, now[name]), kind="stable")[gone:])
        return now.cut({name: keep}), keep.tolist()

    def saved(name: str) -> int:
        small, _ = without(groups, name, int(0.3 * groups[name].channels))
        return flops - count(small, example, names).costs.flops

    prunable = [group.name for group in groups.prunable]
    scale = naive_lambda(tau, bound, len(prunable))
    result = Published(sorted(prunable, key=saved, reverse=scale <= 1))
    model, base = copy.deepcopy(workload.model), plain_losses(workload.model, batches, tasks)
    scored = []
    for name in result.plan:
        result.taus.append(tau)
        now, accepted = trace(model, example, names), None
        for ratio in RATIOS:
            gone = max(1, int(now[name].channels * ratio + 1e-9))
            if gone >= now[name].channels:
                break
            candidate, keep = without(now, name, gone)
            losses = plain_losses(candidate, batches, tasks)
            result.forward_flops += samples * count(candidate, example, names).costs.flops
            if max(losses[task] / base[task] for task in base) > 1 + tau:
                break
            accepted = candidate, keep, losses
        if accepted is not None:
            model, keep, losses = accepted
            result.chosen[name] = keep
            rise = max(losses[task] / base[task] for task in base) - 1
            alone = flops - count(groups.cut({name: keep}), example, names).costs.flops
            scored.append((rise / max(alone, 1e-12), name))  # a head that only training runs saves nothing
            base = {task: max(base[task], losses[task]) for task in base}
        tau *= scale
    best = {name for _, name in sorted(scored)[: math.ceil(0.8 * len(scored))]}
    result.kept = {name: keep for name, keep in result.chosen.items() if name in best}
    return result
