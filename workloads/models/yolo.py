"""A one-stage detector with CSP blocks, a PAN neck and anchors at three scales, as in YOLOv5 (Jocher et al., 2020).

Cross-stage partial blocks: Wang et al., CSPNet (CVPR Workshops 2020). Path aggregation: Liu et al., PANet (CVPR 2018).
Fast spatial pyramid pooling and the bounded decoding of boxes are YOLOv5's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AnchorGrid:
    """Where the predictions stand: at every cell of each scale, one per anchor.

    Predictions are ordered by scale, then anchor, then row, then column.
    """

    size: int
    """Height and width of the picture in pixels."""
    strides: tuple[int, ...]
    """Pixels per cell, of each scale."""
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    """Width and height in pixels of the anchors of each scale."""

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells along a side, of each scale."""
        return tuple(self.size // stride for stride in self.strides)

    @property
    def counts(self) -> tuple[int, ...]:
        """Predictions of each scale."""
        return tuple(len(anchors) * cells**2 for anchors, cells in zip(self.anchors, self.cells, strict=True))


class Conv(nn.Sequential):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(inplace=True),
        )


class Bottleneck(nn.Module):
    """1×1, 3×3, and in the backbone a shortcut around both."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(channels, channels), Conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class CSP(nn.Module):
    """Half of the channels go through bottlenecks, the other half past them; a last convolution joins both."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        hidden = outputs // 2
        self.through = Conv(inputs, hidden)
        self.past = Conv(inputs, hidden)
        self.blocks = nn.Sequential(*(Bottleneck(hidden, shortcut) for _ in range(blocks)))
        self.join = Conv(2 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.join(torch.cat([self.blocks(self.through(x)), self.past(x)], dim=1))
        return result


class PyramidPooling(nn.Module):
    """Three 5×5 max poolings in a row see 5, 9 and 13 cells; all are kept."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = Conv(inputs, inputs // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = Conv(4 * (inputs // 2), outputs)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.reduce(x)]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        result: Tensor = self.join(torch.cat(pooled, dim=1))
        return result


class Backbone(nn.Module):
    """[N, 3, H, W] → features of the last three stages, at half of the resolution of one another."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.stem = Conv(3, widths[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(inputs, outputs, 3, 2), CSP(outputs, outputs, blocks))
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.pyramid = PyramidPooling(widths[-1], widths[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return [*features[-3:-1], self.pyramid(features[-1])]


class Neck(nn.Module):
    """Coarse features go down to the fine ones, and what they become goes up again."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.lateral_coarse, self.lateral_middle = Conv(coarse, middle), Conv(middle, fine)
        self.down_middle = CSP(2 * middle, middle, blocks, shortcut=False)
        self.down_fine = CSP(2 * fine, fine, blocks, shortcut=False)
        self.up_fine, self.up_middle = Conv(fine, fine, 3, 2), Conv(middle, middle, 3, 2)
        self.out_middle = CSP(2 * fine, middle, blocks, shortcut=False)
        self.out_coarse = CSP(2 * middle, coarse, blocks, shortcut=False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        fine, middle, coarse = features
        coarse = self.lateral_coarse(coarse)
        middle = self.lateral_middle(self.down_middle(torch.cat([_doubled(coarse), middle], dim=1)))
        fine = self.down_fine(torch.cat([_doubled(middle), fine], dim=1))
        middle = self.out_middle(torch.cat([self.up_fine(fine), middle], dim=1))
        return [fine, middle, self.out_coarse(torch.cat([self.up_middle(middle), coarse], dim=1))]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Detect(nn.Module):
    """One 1×1 convolution per scale; its numbers become boxes, scores and classes.

    A centre lies at most half a cell outside its cell, a side is at most four times the anchor's.
    """

    def __init__(self, widths: Sequence[int], classes: int, grid: AnchorGrid) -> None:
        super().__init__()
        self.grid, self.values = grid, 5 + classes
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, len(anchors) * self.values, 1) for width, anchors in zip(widths, grid.anchors, strict=True)
        )
        for scale, anchors in enumerate(grid.anchors):
            sizes = torch.tensor(anchors).view(-1, 1, 1, 2) / grid.size
            self.register_buffer(f"anchors{scale}", sizes, persistent=False)  # [A, 1, 1, 2], of the picture's size
        self._expect_few_objects()

    def _expect_few_objects(self) -> None:
        """At first every cell holds an object with 2 % probability (Lin et al., Focal loss, ICCV 2017, §4.1)."""
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            with torch.no_grad():
                convolution.bias.view(-1, self.values)[:, 4] = -4.0

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[N, C, H, W] of each scale → [N, P, 5 + K]: (x, y, w, h) of the box in 0..1, logits of object and classes."""
        parts = []
        for scale, (convolution, x) in enumerate(zip(self.convolutions, features, strict=True)):
            samples, _, height, width = x.shape
            raw = convolution(x).float().view(samples, -1, self.values, height, width).permute(0, 1, 3, 4, 2)
            parts.append(self._decode(raw, self.get_buffer(f"anchors{scale}")).flatten(1, 3))
        return torch.cat(parts, dim=1)

    def _decode(self, raw: Tensor, anchors: Tensor) -> Tensor:
        height, width = raw.shape[2:4]
        rows, columns = torch.arange(height, device=raw.device), torch.arange(width, device=raw.device)
        corner = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # [H, W, 2]
        cells = torch.tensor([width, height], device=raw.device)
        centre = (2 * raw[..., :2].sigmoid() - 0.5 + corner) / cells
        size = (2 * raw[..., 2:4].sigmoid()) ** 2 * anchors
        return torch.cat([centre, size, raw[..., 4:]], dim=-1)


class YOLO(nn.Module):
    """[N, 3, size, size] in 0..1 → {"box": [N, P, 4], "objectness": [N, P, 5], "class": [N, P, 5 + K]}.

    Each output holds what its task is judged by: boxes; boxes with the logit of an object; and with those of the
    classes, the whole detection. Boxes are (centre x, centre y, width, height) in 0..1 of the picture.

    Args:
        widths: channels of the stem and of each stage; every one of them halves the picture, and the last three are
            the detector's scales.
        blocks: bottlenecks in each CSP block.
    """

    def __init__(self, classes: int, grid: AnchorGrid, widths: Sequence[int], blocks: int = 1) -> None:
        super().__init__()
        self.backbone = Backbone(widths, blocks)
        self.neck = Neck(widths[-3:], blocks)
        self.detect = Detect(widths[-3:], classes, grid)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.detect(self.neck(self.backbone(2 * x - 1)))
        return {"box": found[..., :4], "objectness": found[..., :5], "class": found}
