"""The shared encoder with one DeepLab head per task: the usual multi-task baseline of dense prediction.

Chen et al., Rethinking atrous convolution (2017), for atrous spatial pyramid pooling; Zhao et al., Pyramid scene
parsing (CVPR 2017), for the auxiliary head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.workloads.models.blocks import ConvBnRelu, TaskOutputs, Trunk, resized


class PyramidHead(nn.Module):
    """[N, C, H, W] → [N, outputs, H, W]: features seen at several dilations, and their mean over the picture."""

    def __init__(self, inputs: int, width: int, outputs: int, dilations: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvBnRelu(inputs, width, 1), *(ConvBnRelu(inputs, width, dilation=dilation) for dilation in dilations)]
        )
        self.picture = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBnRelu(inputs, width, 1))
        self.project = nn.Sequential(ConvBnRelu((len(dilations) + 2) * width, width, 1), nn.Dropout(0.1))
        self.predict = nn.Sequential(ConvBnRelu(width, width), nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        parts.append(resized(self.picture(x), x))
        result: Tensor = self.predict(self.project(torch.cat(parts, dim=1)))
        return result


class MultiTaskDeepLab(nn.Module):
    """[N, 3, H, W] → {task: [N, outputs, H, W]}; while training also "auxiliary": {task: ...} from the stage before."""

    def __init__(self, tasks: TaskOutputs, widths: Sequence[int], head: int, blocks: int = 2) -> None:
        super().__init__()
        self.trunk = Trunk(widths, blocks, dilations=(*[1] * (len(widths) - 2), 2, 4))
        self.heads = nn.ModuleDict({task: PyramidHead(widths[-1], head, outputs) for task, outputs in tasks.items()})
        self.auxiliary = nn.ModuleDict(
            {
                task: nn.Sequential(ConvBnRelu(widths[-2], head), nn.Conv2d(head, outputs, 1))
                for task, outputs in tasks.items()
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        features = self.trunk(x)
        out: dict[str, Tensor | dict[str, Tensor]] = {
            task: resized(head(features[-1]), x) for task, head in self.heads.items()
        }
        if self.training:
            out["auxiliary"] = {task: resized(head(features[-2]), x) for task, head in self.auxiliary.items()}
        return out
