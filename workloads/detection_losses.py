"""The three losses of an anchor-based detector: box, objectness, class; and which predictions answer for an object.

As YOLOv5 (Jocher et al., 2020) assigns them: an object is assigned to every anchor whose sides are within a factor of
four of its own, in its cell and in the two nearest neighbouring cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.workloads.boxes import complete_iou, iou
from secateur.workloads.metrics import Mean
from secateur.workloads.models.yolo import AnchorGrid

RATIO = 4.0
"""The largest ratio of an object's side to its anchor's, or the inverse."""
BALANCE = (4.0, 1.0, 0.4)
"""Weight of each scale's objectness loss, from fine to coarse."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Assigned:
    """Which predictions answer for which objects: M pairs."""

    sample: Tensor  # [M]
    prediction: Tensor  # [M] index into the P predictions of a sample
    box: Tensor  # [M, 4] the object's box
    kind: Tensor  # [M] its class


def assign(target: Tensor, grid: AnchorGrid) -> Assigned:
    """The predictions that are to find each object.

    Args:
        target: [N, S, 5]: class (-1 where a slot is empty) and box in 0..1.
    """
    sample, slot = (target[..., 0] >= 0).nonzero(as_tuple=True)
    objects = target[sample, slot]
    chosen, offset = [], 0
    for stride, anchors, cells, count in zip(grid.strides, grid.anchors, grid.cells, grid.counts, strict=True):
        rows, index = _assign_scale(objects[:, 1:] * grid.size, stride, target.new_tensor(anchors), cells)
        chosen.append((rows, index + offset))
        offset += count
    rows, prediction = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    return Assigned(sample[rows], prediction, objects[rows, 1:], objects[rows, 0].long())


def _assign_scale(boxes: Tensor, stride: int, anchors: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """For boxes [G, 4] in pixels: (which box, index of the prediction in this scale) of each pair."""
    ratio = boxes[:, None, 2:] / anchors
    box, anchor = (torch.maximum(ratio, 1 / ratio).amax(-1) < RATIO).nonzero(as_tuple=True)
    place = boxes[box, :2] / stride  # [M, 2] in cells
    nearer = torch.where(place % 1 < 0.5, -1.0, 1.0)  # towards the nearest neighbour along x and y
    none = torch.zeros_like(nearer[:, 0])
    steps = torch.stack([torch.stack([none, none], -1), torch.stack([nearer[:, 0], none], -1),
                         torch.stack([none, nearer[:, 1]], -1)], dim=1)  # fmt: skip
    cell = (place.floor()[:, None] + steps).long()  # [M, 3, 2]
    pair, which = ((cell >= 0) & (cell < cells)).all(-1).nonzero(as_tuple=True)
    column, row = cell[pair, which].unbind(-1)
    return box[pair], (anchor[pair] * cells + row) * cells + column


def box_loss(grid: AnchorGrid) -> Loss:
    """Mean of 1 - CIoU over assigned predictions [N, P, 4+]."""

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = assign(target, grid)
        overlap = complete_iou(prediction[found.sample, found.prediction, :4], found.box)
        return _mean(1 - overlap, prediction)

    return loss


def objectness_loss(grid: AnchorGrid) -> Loss:
    """Binary cross entropy of all predictions [N, P, 5+] with the IoU that the predicted box reaches (0 where no
    object is assigned); a mean for each scale, weighted by BALANCE."""
    weights = [torch.full((count,), weight / count) for weight, count in zip(BALANCE, grid.counts, strict=True)]
    weight = torch.cat(weights) / len(weights)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = assign(target, grid)
        with torch.no_grad():
            reached = iou(prediction[found.sample, found.prediction, :4], found.box)
            wanted = prediction.new_zeros(prediction.shape[:2])
            index = found.sample * wanted.shape[1] + found.prediction
            wanted.view(-1).scatter_reduce_(0, index, reached.to(wanted.dtype), "amax")
        values = F.binary_cross_entropy_with_logits(prediction[..., 4], wanted, reduction="none")
        return (values * weight.to(values)).sum(dim=1).mean()

    return loss


def class_loss(grid: AnchorGrid) -> Loss:
    """Mean binary cross entropy of the class logits of assigned predictions [N, P, 5 + K]."""

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = assign(target, grid)
        logits = prediction[found.sample, found.prediction, 5:]
        wanted = F.one_hot(found.kind, logits.shape[-1]).to(logits)
        return _mean(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none"), prediction)

    return loss


def _mean(values: Tensor, prediction: Tensor) -> Tensor:
    """Zero, but part of the graph, when no object is assigned."""
    return values.mean() if values.numel() else 0.0 * prediction.sum()


class AssignedIoU(Mean):
    """Mean IoU of assigned predictions [N, P, 4+] with their objects."""

    def __init__(self, grid: AnchorGrid) -> None:
        super().__init__()
        self.grid = grid

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        found = assign(target, self.grid)
        return iou(prediction[found.sample, found.prediction, :4], found.box)
