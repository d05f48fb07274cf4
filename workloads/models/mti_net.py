"""MTI-Net: tasks predict and tell one another at four scales, and coarse scales hand their task features to finer ones.

Vandenhende, Georgoulis and Van Gool, MTI-Net: multi-scale task interaction networks (ECCV 2020), on HRNet.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.workloads.models.blocks import BasicBlock, SqueezeExcite, TaskOutputs, resized
from secateur.workloads.models.distillation import Distillation, Features, InitialPredictions
from secateur.workloads.models.hrnet import HighResolutionHead, HRNet


class Propagation(nn.Module):
    """Task features of one scale, made ready for the next finer scale (§3.3).

    At each place and channel, attention over the tasks weighs their features; what that leaves of all of them is
    reduced to the width of one, and each task takes of it what it needs (squeeze and excitation) and adds its own.
    """

    def __init__(self, tasks: TaskOutputs, width: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        together = width * len(tasks)
        self.attend = nn.Sequential(BasicBlock(together, together // 4), nn.Conv2d(together // 4, together, 1))
        self.reduce = BasicBlock(together, width)
        self.excite = nn.ModuleDict({task: SqueezeExcite(width) for task in tasks})

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        stacked = torch.stack([features[task] for task in self.tasks], dim=1)  # [N, T, C, H, W]
        weights = self.attend(stacked.flatten(1, 2)).view_as(stacked).softmax(dim=1)
        shared = self.reduce((weights * stacked).flatten(1, 2))
        return {task: excite(shared) + features[task] for task, excite in self.excite.items()}


class MTINet(nn.Module):
    """[N, 3, H, W] → {task: [N, outputs, H, W]}; while training also "deep_supervision": {"scale_0": {task: ...}, ...},
    the initial predictions at each scale's own resolution.

    They are computed in evaluation too, as in the published code, and dropped: branches of no use in a deployed model.
    """

    def __init__(self, tasks: TaskOutputs, backbone: HRNet) -> None:
        super().__init__()
        self.backbone = backbone
        widths = backbone.widths
        self.initial = nn.ModuleList(
            InitialPredictions(tasks, width + coarser, width)
            for width, coarser in zip(widths, (*widths[1:], 0), strict=True)
        )
        self.propagate = nn.ModuleList(Propagation(tasks, coarser) for coarser in widths[1:])
        self.distil = nn.ModuleList(Distillation(tasks, width) for width in widths)
        self.heads = nn.ModuleDict({task: HighResolutionHead(widths, outputs) for task, outputs in tasks.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Features]]:
        features, initial = self._initial(self.backbone(x))
        told = [distil(scale) for distil, scale in zip(self.distil, features, strict=True)]
        out: dict[str, Tensor | dict[str, Features]] = {
            task: resized(head([scale[task] for scale in told]), x) for task, head in self.heads.items()
        }
        if self.training:
            out["deep_supervision"] = {f"scale_{index}": scale for index, scale in enumerate(initial)}
        return out

    def _initial(self, branches: list[Tensor]) -> tuple[list[Features], list[Features]]:
        """(features, predictions) of each scale, from fine to coarse; computed from coarse to fine."""
        own, predicted = self.initial[3](branches[3])
        features, predictions = [own], [predicted]
        for scale in (2, 1, 0):
            handed = self.propagate[scale](features[0])
            seen = {
                task: torch.cat([branches[scale], resized(part, branches[scale])], dim=1)
                for task, part in handed.items()
            }
            own, predicted = self.initial[scale](seen)
            features.insert(0, own)
            predictions.insert(0, predicted)
        return features, predictions
