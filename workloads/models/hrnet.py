"""HRNet: branches of several resolutions side by side, which exchange what they see after every few blocks.

Wang et al., Deep high-resolution representation learning (T-PAMI 2020). `hrnet18` has the sizes of HRNet-W18.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.workloads.models.blocks import BasicBlock, Bottleneck, ConvBnRelu, resized


class Exchange(nn.Module):
    """Every branch gets the sum of all branches, brought to its resolution and channels."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: Sequence[Tensor]) -> list[Tensor]:
        exchanged = []
        for own, paths in zip(branches, self.paths, strict=True):
            assert isinstance(paths, nn.ModuleList)
            total: Tensor | None = None
            for path, branch in zip(paths, branches, strict=True):
                brought = path(branch)
                brought = resized(brought, own) if brought.shape[-1] < own.shape[-1] else brought
                total = brought if total is None else total + brought
            assert total is not None
            exchanged.append(F.relu(total))
        return exchanged


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Up: 1×1 (the result is enlarged afterwards). Down: one 3×3 of stride 2 for each halving."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]))
    layers: list[nn.Module] = [ConvBnRelu(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    layers += [nn.Conv2d(widths[source], widths[target], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[target])]
    return nn.Sequential(*layers)


class Stage(nn.Module):
    """Modules of residual blocks on each branch, each module ending with an exchange."""

    def __init__(self, widths: Sequence[int], modules: int, blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))) for width in widths)
            for _ in range(modules)
        )
        self.exchanges = nn.ModuleList(Exchange(widths) for _ in range(modules))

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        for branches, exchange in zip(self.branches, self.exchanges, strict=True):
            assert isinstance(branches, nn.ModuleList)
            x = exchange([branch(part) for branch, part in zip(branches, x, strict=True)])
        return list(x)


class HRNet(nn.Module):
    """[N, 3, H, W] → four features [N, width·2^i, H / 2^(i+2), W / 2^(i+2)].

    Args:
        width: channels of the finest branch; every further one has twice as many at half of the resolution.
        modules: of stages 2, 3 and 4.
        blocks: residual blocks in each branch of a module.
        stem: channels of the stem and of stage 1, whose output has four times as many.
    """

    def __init__(self, width: int, modules: Sequence[int] = (1, 4, 3), blocks: int = 4, stem: int = 64) -> None:
        super().__init__()
        self.widths = tuple(width * 2**index for index in range(4))
        self.stem = nn.Sequential(ConvBnRelu(3, stem, 3, 2), ConvBnRelu(stem, stem, 3, 2))
        self.stage1 = nn.Sequential(*(Bottleneck(stem if index == 0 else 4 * stem, stem) for index in range(blocks)))
        self.start = ConvBnRelu(4 * stem, self.widths[0])
        self.branch_off = nn.ModuleList(
            ConvBnRelu(4 * stem if index == 0 else self.widths[index], self.widths[index + 1], 3, 2)
            for index in range(3)
        )
        self.stages = nn.ModuleList(
            Stage(self.widths[: index + 2], count, blocks) for index, count in enumerate(modules)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stage1(self.stem(x))
        branches, coarsest = [self.start(x)], x
        for stage, branch_off in zip(self.stages, self.branch_off, strict=True):
            branches = stage([*branches, branch_off(coarsest)])
            coarsest = branches[-1]
        return branches


class HighResolutionHead(nn.Module):
    """All branches at the finest resolution, one after the other, mixed, and predicted from (HRNetV2)."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.mix = ConvBnRelu(sum(widths), sum(widths), 1)
        self.predict = nn.Conv2d(sum(widths), outputs, 1)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        parts = [branches[0], *(resized(branch, branches[0]) for branch in branches[1:])]
        result: Tensor = self.predict(self.mix(torch.cat(parts, dim=1)))
        return result


def hrnet18() -> HRNet:
    """HRNet-W18, the backbone of MTI-Net's published results."""
    return HRNet(18)
