"""Boxes (centre x, centre y, width, height): overlaps, and the choice of the best among overlapping ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) → (left, top, right, bottom), along the last dimension."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] with boxes [..., 4]; leading dimensions broadcast."""
    a, b = corners(one), corners(other)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    union = one[..., 2:4].prod(-1) + other[..., 2:4].prod(-1) - overlap
    return overlap / union.clamp_min(1e-9)


def complete_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU less the distance of the centres and the difference of the aspect ratios, in -1.5..1: its gradient does not
    vanish where boxes do not touch (Zheng et al., Distance-IoU loss, AAAI 2020, eq. 8-11)."""
    a, b = corners(one), corners(other)
    enclosing = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (one[..., :2] - other[..., :2]).square().sum(-1) / enclosing.square().sum(-1).clamp_min(1e-9)
    angles = [torch.atan(box[..., 2] / box[..., 3].clamp_min(1e-9)) for box in (one, other)]
    aspect = (4 / math.pi**2) * (angles[0] - angles[1]).square()
    overlap = iou(one, other)
    with torch.no_grad():
        weight = aspect / (1 - overlap + aspect).clamp_min(1e-9)
    return overlap - apart - weight * aspect


def suppress(boxes: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression: which boxes stay when each one removes later ones that it overlaps.

    Args:
        boxes: [N, D, 4], of each sample the best first.
        classes: [N, D]; boxes of different classes do not suppress each other.
        threshold: IoU above which the later box goes.

    Returns:
        bool [N, D]. A box stays if no box that stays before it overlaps it: iterated until nothing changes, which is
        what taking one box after the other gives.
    """
    overlapping = (iou(boxes[:, :, None], boxes[:, None]) > threshold) & (classes[:, :, None] == classes[:, None])
    earlier = overlapping & torch.ones(boxes.shape[1], boxes.shape[1], dtype=torch.bool).triu(1)
    kept = torch.ones_like(classes, dtype=torch.bool)
    while True:
        again = ~(earlier & kept[:, :, None]).any(dim=1)
        if torch.equal(again, kept):
            return kept
        kept = again
