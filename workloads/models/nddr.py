"""NDDR-CNN: one trunk per task; after each stage every task reduces the features of all to its own width.

Gao et al., NDDR-CNN: layerwise feature fusing by neural discriminative dimensionality reduction (CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.workloads.models.blocks import ConvBnRelu, TaskOutputs, Trunk, resized


class Fuse(nn.Module):
    """Features of T tasks, each [N, C, H, W] → as many: a 1×1 convolution of all of them for each task.

    It starts as a weighted mean: `own` of a task's features and equal shares of the others'.
    """

    def __init__(self, tasks: int, channels: int, own: float = 0.9) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(ConvBnRelu(tasks * channels, channels, 1) for _ in range(tasks))
        others = (1 - own) / max(1, tasks - 1)
        for task, layers in enumerate(self.reduce):
            shares = [own if other == task else others for other in range(tasks)]
            weight = torch.cat([share * torch.eye(channels) for share in shares], dim=1)
            layers.get_parameter("0.weight").data.copy_(weight[..., None, None])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        together = torch.cat(list(features), dim=1)
        return [reduce(together) for reduce in self.reduce]


class NDDRNetwork(nn.Module):
    """[N, 3, H, W] → {task: [N, outputs, H, W]}; heads see the fused features of all stages (NDDR with shortcuts)."""

    def __init__(self, tasks: TaskOutputs, widths: Sequence[int], blocks: int = 2) -> None:
        super().__init__()
        self.trunks = nn.ModuleDict({task: Trunk(widths, blocks) for task in tasks})
        self.fusions = nn.ModuleList(Fuse(len(tasks), width) for width in widths)
        self.gather = nn.ModuleDict({task: ConvBnRelu(sum(widths), widths[-1], 1) for task in tasks})
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(ConvBnRelu(widths[-1], widths[0]), nn.Conv2d(widths[0], outputs, 1))
                for task, outputs in tasks.items()
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        trunks = [trunk for trunk in self.trunks.values() if isinstance(trunk, Trunk)]
        features, fused = [trunk.stem(x) for trunk in trunks], []
        for stage, fuse in enumerate(self.fusions):
            features = fuse([trunk.stages[stage](part) for trunk, part in zip(trunks, features, strict=True)])
            fused.append(features)
        out = {}
        for index, (task, head) in enumerate(self.heads.items()):
            own = [stage[index] for stage in fused]
            out[task] = resized(head(self.gather[task](torch.cat([resized(x, own[-1]) for x in own], dim=1))), x)
        return out
