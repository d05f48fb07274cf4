"""A detector in two stages: proposals from anchors, and a head that looks into each of them.

Ren et al., Faster R-CNN (NeurIPS 2015); Lin et al., Feature pyramid networks (CVPR 2017); He et al., Mask R-CNN (ICCV
2017), for RoI align. Which boxes are looked into depends on the data, so that a trace ends there: `first` and `second`
are traced and compressed each on its own, and what lies between them is plain code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.workloads.boxes import corners, suppress
from secateur.workloads.models.blocks import ConvBnRelu, Trunk, resized

Pyramid = tuple[Tensor, ...]


class Proposals(nn.Module):
    """[N, 3, H, W] → {"features": (fine, ..., coarse), each [N, C, h, w], "proposals": ((objectness [N, A, h, w], boxes
    [N, 4·A, h, w]), ...)}: a feature pyramid, and on every level of it the same small network."""

    def __init__(self, widths: Sequence[int], width: int, anchors: int = 1, blocks: int = 1) -> None:
        super().__init__()
        self.trunk = Trunk(widths, blocks)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)
        self.shared = ConvBnRelu(width, width)
        self.objectness = nn.Conv2d(width, anchors, 1)
        self.boxes = nn.Conv2d(width, 4 * anchors, 1)

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]]:
        merged: list[Tensor] = []
        for lateral, features in zip(reversed(self.lateral), reversed(self.trunk(x)), strict=True):
            level = lateral(features)
            merged.insert(0, level if not merged else level + resized(merged[0], level))
        pyramid = tuple(smooth(level) for smooth, level in zip(self.smooth, merged, strict=True))
        hidden = [self.shared(level) for level in pyramid]
        return {
            "features": pyramid,
            "proposals": tuple((self.objectness(level), self.boxes(level)) for level in hidden),
        }


class RegionHead(nn.Module):
    """Pooled features [R, C, S, S] → {"class": logits [R, K + 1], the last of no object, "box": [R, K, 4]}."""

    def __init__(self, width: int, size: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(width * size**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.scores = nn.Linear(hidden, classes + 1)
        self.boxes = nn.Linear(hidden, 4 * classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.hidden(x)
        return {"class": self.scores(x), "box": self.boxes(x).unflatten(1, (self.classes, 4))}


class TwoStage(nn.Module):
    """[N, 3, H, W] → what `second` says of the best proposals, R = N·regions of them, and their boxes [R, 4]."""

    def __init__(self, first: Proposals, second: RegionHead, size: int, regions: int = 8, anchor: float = 4.0) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.size, self.regions, self.anchor = size, regions, anchor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.first(x)
        boxes = best_boxes(found["proposals"], self.regions, self.anchor)  # [N, R, 4] in 0..1
        finest: Tensor = found["features"][0]
        return {**self.second(roi_align(finest, boxes, self.size)), "proposals": boxes.flatten(0, 1)}


@torch.no_grad()
def best_boxes(levels: Sequence[tuple[Tensor, Tensor]], count: int, anchor: float) -> Tensor:
    """The most probable boxes of all levels that do not overlap too much: [N, count, 4], centre and size in 0..1.

    One anchor per cell, a square of `anchor` cells; a box is its anchor moved by (x, y) sides and grown by exp (w, h).
    """
    boxes, scores = [], []
    for objectness, offsets in levels:
        height, width = objectness.shape[-2:]
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        centre = torch.stack(torch.meshgrid(columns / width, rows / height, indexing="xy"))  # [2, h, w]
        side = torch.tensor([anchor / width, anchor / height]).view(2, 1, 1)
        place = torch.cat([centre + side * offsets[:, :2], side * offsets[:, 2:].clamp(-2, 2).exp()], dim=1)
        boxes.append(place.flatten(2).transpose(1, 2))
        scores.append(objectness.flatten(1))
    ranked, order = torch.cat(scores, dim=1).sort(dim=1, descending=True, stable=True)
    found = torch.take_along_dim(torch.cat(boxes, dim=1), order[..., None], dim=1)
    kept = suppress(found, torch.zeros_like(ranked), 0.7)
    first = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return torch.take_along_dim(found, first[..., None], dim=1)


def roi_align(features: Tensor, boxes: Tensor, size: int, samples: int = 2) -> Tensor:
    """Features [N, C, H, W] inside boxes [N, R, 4] (centre and size in 0..1) → [N·R, C, size, size]: the mean of
    samples² bilinear samples in each bin; places outside the picture count as its border."""
    count, regions = boxes.shape[:2]
    edges = corners(boxes).flatten(0, 1)  # [N·R, 4]
    steps = (torch.arange(size * samples, device=boxes.device) + 0.5) / (size * samples)
    along = edges[:, :2, None] + steps * (edges[:, 2:] - edges[:, :2])[..., None]  # [N·R, 2, size·samples]
    x, y = along[:, 0], along[:, 1]
    side = size * samples
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    grid = 2 * grid.view(count, regions * side, side, 2) - 1
    sampled = F.grid_sample(features, grid, padding_mode="border", align_corners=False)  # [N, C, R·L, L]
    sampled = sampled.view(count, -1, regions, side, side).transpose(1, 2).flatten(0, 1)
    return F.avg_pool2d(sampled, samples)
