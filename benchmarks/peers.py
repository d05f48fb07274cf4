"""What PAGCP is measured against: each peer cuts a workload's model to a share of its FLOPs, and does nothing else.

Uniform L1 takes the same share of every group (our own groups). torch-pruning ranks channels over the whole model, by
magnitude, BN scale or Taylor; its tracer is told what it does not find by itself: which layers are a task's output, and
in a transformer (see `Hints`) heads, positions and the layers before a sub-pixel convolution. A training-only head is
taken out first, since it does not see that either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.pagcp.saliency import find, lowest, score
from secateur.core.predict import losses
from secateur.core.task import Workload
from secateur.workloads.models.scenes_vit import Attention, ScenesViT

Cutter = Callable[[Workload, float], nn.Module]


def peers(workload: Workload) -> dict[str, Cutter]:
    """Those that can cut this model: BN scale needs a batch norm in every group; isomorphic ranking, among groups of
    the same structure, is torch-pruning's own proposal for transformers (Fang et al., ECCV 2024)."""
    found = {
        "uniform L1": uniform_l1,
        "torch-pruning L1": torch_pruning(lambda: tp.importance.MagnitudeImportance(p=1)),
        "torch-pruning BN scale": torch_pruning(tp.importance.BNScaleImportance),
        "torch-pruning Taylor": torch_pruning(tp.importance.TaylorImportance, gradients=True),
    }
    if isinstance(workload.model, ScenesViT):
        del found["torch-pruning BN scale"]
        isomorphic = torch_pruning(tp.importance.TaylorImportance, gradients=True, isomorphic=True)
        found["torch-pruning Taylor, isomorphic"] = isomorphic
    return found


def uniform_l1(workload: Workload, share: float) -> nn.Module:
    """The same share of the lowest-L1 channels out of every group; the share is bisected to the FLOPs."""
    inputs, _ = next(iter(workload.calibration))
    groups = trace(workload.model, inputs, workload.task_names)
    costs, state, l1 = CostModel(groups), dict(workload.model.named_parameters()), find("l1")

    def keep(ratio: float) -> dict[str, np.ndarray]:
        return {
            group.name: np.setdiff1d(
                np.arange(group.channels),
                lowest(score(group, state, l1), min(int(group.channels * ratio), group.channels - 1)),
            )
            for group in groups.prunable
        }

    def flops(ratio: float) -> float:
        return costs.flops(costs.widths({name: len(kept) for name, kept in keep(ratio).items()}))

    ratio = bisect(lambda ratio: flops(ratio) / flops(0.0), share)
    return groups.cut(keep(ratio), remove_dead=True)


def torch_pruning(
    importance: Callable[[], tp.importance.Importance], gradients: bool = False, **options: Any
) -> Cutter:
    """A cutter by torch-pruning's global ranking; the ratio is bisected to the FLOPs."""

    def cut(workload: Workload, share: float) -> nn.Module:
        whole = without_dead(workload)
        fixed = outputs(whole, workload)
        if gradients:
            backward(whole, workload)

        def at(ratio: float) -> nn.Module:
            model = copy.deepcopy(whole)
            for mine, original in zip(model.parameters(), whole.parameters(), strict=True):
                mine.grad = original.grad
            hints, heads = Hints.of(model), [model.get_submodule(name) for name in fixed]
            pruner = tp.pruner.BasePruner(
                model, workload.example_input, importance=importance(), pruning_ratio=ratio, max_pruning_ratio=0.95,
                global_pruning=True, ignored_layers=[*heads, *hints.ignored],
                num_heads={each.qkv: each.heads for each in hints.attentions}, unwrapped_parameters=hints.positions,
                **options,
            )  # fmt: skip
            pruner.step()
            model.zero_grad()
            return model

        total = flops(whole, workload)
        return at(bisect(lambda ratio: flops(at(ratio), workload) / total, share))

    return cut


@dataclass(frozen=True)
class Hints:
    """What torch-pruning must be told of a transformer, by its own documentation: how many heads a fused layer of
    queries, keys and values has (`num_heads`), and along which dimension a parameter goes that is no layer's
    (`unwrapped_parameters`). Without the first, heads stay whole. The layers before a sub-pixel convolution are
    ignored: a channel of its output is sixteen of theirs, for which it has no word, and its cut would fail."""

    attentions: tuple[Attention, ...]
    positions: list[tuple[nn.Parameter, int]] | None
    ignored: tuple[nn.Module, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Hints:
        if not isinstance(model, ScenesViT):
            return cls((), None, ())
        attentions = tuple(module for module in model.modules() if isinstance(module, Attention))
        heads = (model.segmentation, model.depth, model.normals, model.edges)
        return cls(attentions, [(model.position, 2)], tuple(head[0] for head in heads))


def flops(model: nn.Module, workload: Workload) -> int:
    """As `secateur.profiles.count` counts them, without an export for each ratio that is tried."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(workload.example_input)
    return counter.get_total_flops()


def without_dead(workload: Workload) -> nn.Module:
    inputs, _ = next(iter(workload.calibration))
    return trace(workload.model, inputs, workload.task_names).cut({}, remove_dead=True)


def outputs(model: nn.Module, workload: Workload) -> list[str]:
    """Paths of the layers whose channels are fixed: the last convolution or linear layer of each task's head."""
    inputs, _ = next(iter(workload.calibration))
    groups = trace(model, inputs, workload.task_names, trial=False)
    names = {
        member.parameter.rpartition(".")[0]
        for group in groups.values()
        if not group.prunable
        for member in group.members
        if member.role == "out"
    }
    return [name for name in sorted(names) if isinstance(model.get_submodule(name), (nn.Conv2d, nn.Linear))]


def backward(model: nn.Module, workload: Workload) -> None:
    for batch in workload.calibration:
        values = losses(model, batch, workload.tasks)
        torch.stack([task.weight * values[task.name] for task in workload.tasks]).sum().backward()


def bisect(fraction: Callable[[float], float], share: float) -> float:
    """The smallest ratio (to 1/512) at which the fraction of FLOPs is at most `share`."""
    low, high = 0.0, 0.98
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (low, middle) if fraction(middle) <= share else (middle, high)
    return high
