"""Cross-stitch networks: one trunk per task, and after each stage learned mixtures of their features.

Misra, Shrivastava, Gupta and Hebert, Cross-stitch networks (CVPR 2016), with one unit per channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.workloads.models.blocks import ConvBnRelu, TaskOutputs, Trunk, resized


class CrossStitch(nn.Module):
    """Features of T tasks, each [N, C, H, W] → as many, each a mixture of all, channel by channel."""

    def __init__(self, tasks: int, channels: int, own: float = 0.9) -> None:
        super().__init__()
        others = (1 - own) / max(1, tasks - 1)
        mixture = others + (own - others) * torch.eye(tasks)
        self.mixture = nn.Parameter(mixture[..., None].repeat(1, 1, channels))  # [T, T, C]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        mixed = []
        for weights in self.mixture:
            parts = [weight.view(1, -1, 1, 1) * part for weight, part in zip(weights, features, strict=True)]
            mixed.append(torch.stack(parts).sum(dim=0))
        return mixed


class CrossStitchNetwork(nn.Module):
    """[N, 3, H, W] → {task: [N, outputs, H, W]}."""

    def __init__(self, tasks: TaskOutputs, widths: Sequence[int], blocks: int = 2) -> None:
        super().__init__()
        self.trunks = nn.ModuleDict({task: Trunk(widths, blocks) for task in tasks})
        self.stitches = nn.ModuleList(CrossStitch(len(tasks), width) for width in widths)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(ConvBnRelu(widths[-1], widths[0]), nn.Conv2d(widths[0], outputs, 1))
                for task, outputs in tasks.items()
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        trunks = [trunk for trunk in self.trunks.values() if isinstance(trunk, Trunk)]
        features = [trunk.stem(x) for trunk in trunks]
        for stage, stitch in enumerate(self.stitches):
            features = stitch([trunk.stages[stage](part) for trunk, part in zip(trunks, features, strict=True)])
        return {task: resized(head(part), x) for (task, head), part in zip(self.heads.items(), features, strict=True)}
