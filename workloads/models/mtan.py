"""MTAN: one shared trunk, and for each task a chain of attention modules that pick features from all of its stages.

Liu, Johns and Davison, End-to-end multi-task learning with attention (CVPR 2019), eq. 1-2, on a residual trunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.workloads.models.blocks import BasicBlock, ConvBnRelu, TaskOutputs, residual_stage, resized


class Attention(nn.Module):
    """A mask in 0..1 over a stage's last features, from its first ones and what the task picked before."""

    def __init__(self, shared: int, before: int, hidden: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            ConvBnRelu(shared + before, hidden, 1), nn.Conv2d(hidden, shared, 1, bias=False), nn.BatchNorm2d(shared)
        )

    def forward(self, early: Tensor, late: Tensor, before: Tensor | None) -> Tensor:
        """All [N, C, H, W] → [N, C, H, W]."""
        seen = early if before is None else torch.cat([early, before], dim=1)
        result: Tensor = torch.sigmoid(self.mask(seen)) * late
        return result


class MTAN(nn.Module):
    """[N, 3, H, W] → {task: [N, outputs, H, W]}."""

    def __init__(self, tasks: TaskOutputs, widths: Sequence[int], blocks: int = 2) -> None:
        super().__init__()
        self.stem = ConvBnRelu(3, widths[0], 3, 2)
        inputs = (widths[0], *widths[:-1])
        self.early = nn.ModuleList(
            residual_stage(before, width, blocks, 1 + (index > 0))
            for index, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.late = nn.ModuleList(BasicBlock(width, width) for width in widths)
        self.attention = nn.ModuleDict({task: self._chain(widths) for task in tasks})
        self.pass_on = nn.ModuleList(  # shared by the tasks, as the paper's f is
            ConvBnRelu(width, following) for width, following in zip(widths, (*widths[1:], widths[-1]), strict=True)
        )
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(ConvBnRelu(widths[-1], widths[0]), nn.Conv2d(widths[0], outputs, 1))
                for task, outputs in tasks.items()
            }
        )

    @staticmethod
    def _chain(widths: Sequence[int]) -> nn.ModuleList:
        return nn.ModuleList(
            Attention(width, width if index else 0, max(1, width // 4)) for index, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stages = self._shared(x)
        return {task: resized(head(self._picked(task, stages)), x) for task, head in self.heads.items()}

    def _shared(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(first, last) features of each stage."""
        stages: list[tuple[Tensor, Tensor]] = []
        x = self.stem(x)
        for early, late in zip(self.early, self.late, strict=True):
            first = early(x)
            x = late(first)
            stages.append((first, x))
        return stages

    def _picked(self, task: str, stages: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        chain = self.attention[task]
        assert isinstance(chain, nn.ModuleList)
        picked: Tensor | None = None
        for index, ((first, last), attention) in enumerate(zip(stages, chain, strict=True)):
            picked = self.pass_on[index](attention(first, last, picked))
            if index + 1 < len(stages):
                picked = F.max_pool2d(picked, 2)
        assert picked is not None
        return picked
