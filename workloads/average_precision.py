"""Mean average precision as COCO defines it (Lin et al., Microsoft COCO, ECCV 2014; its evaluation code): detections,
the best first, take the object of their class that they overlap most; the precision at 101 recalls is averaged.

Differs from COCO's own evaluation in what it leaves out: crowd regions, ranges of areas, and limits other than that of
`LIMIT` detections per picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from secateur.workloads.boxes import iou, suppress
from secateur.workloads.raycast import Array

LIMIT = 100
"""Detections per picture that count."""
CONFIDENCE = 0.01
"""Scores below are no detections: they cost time, and less than a thousandth of the average precision."""
SUPPRESSION = 0.6
"""IoU above which the less confident of two boxes of a class goes."""
COCO_IOUS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Detections:
    """D detections of each of N pictures, the best first; a score of -1 marks an empty place."""

    boxes: Tensor  # [N, D, 4]
    scores: Tensor  # [N, D]
    classes: Tensor  # [N, D]


def detections(prediction: Tensor, confidence: float = CONFIDENCE) -> Detections:
    """What a detector finds: the best class of each prediction, without what a better box suppresses.

    Args:
        prediction: [N, P, 5 + K], K >= 0: box, logit of an object, logits of the classes. Without classes all are of
            class 0.
    """
    probabilities = prediction[..., 5:].sigmoid() if prediction.shape[-1] > 5 else torch.ones_like(prediction[..., :1])
    best, classes = probabilities.max(dim=-1)
    scores, order = (prediction[..., 4].sigmoid() * best).topk(min(3 * LIMIT, prediction.shape[1]), dim=1)
    boxes = torch.take_along_dim(prediction[..., :4], order[..., None], dim=1)
    classes = classes.gather(1, order)
    kept = suppress(boxes, classes, SUPPRESSION) & (scores >= confidence)
    scores, order = torch.where(kept, scores, -1.0).topk(min(LIMIT, scores.shape[1]), dim=1)
    return Detections(torch.take_along_dim(boxes, order[..., None], dim=1), scores, classes.gather(1, order))


def matches(found: Detections, target: Tensor, thresholds: Tensor) -> Tensor:
    """Which detections are right at each IoU threshold [T]: bool [N, T, D].

    One after the other, from the best, each takes the object of its class [N, S, 5] that it overlaps most and that no
    better detection has taken, if the overlap reaches the threshold.
    """
    overlap = iou(found.boxes[:, :, None], target[:, None, :, 1:])  # [N, D, S]
    possible = (found.classes[:, :, None] == target[:, None, :, 0]) & (found.scores[:, :, None] >= 0)
    overlap = torch.where(possible, overlap, -1.0)
    free = torch.ones(len(target), len(thresholds), target.shape[1], dtype=torch.bool)
    right = torch.zeros(len(target), len(thresholds), found.scores.shape[1], dtype=torch.bool)
    for rank in range(found.scores.shape[1]):
        best, slot = torch.where(free, overlap[:, None, rank], -1.0).max(dim=-1)  # [N, T]
        right[:, :, rank] = best >= thresholds
        free.scatter_(2, slot[..., None], (free.gather(2, slot[..., None])[..., 0] & ~right[:, :, rank])[..., None])
    return right


def average_precision(scores: Array, right: Array, objects: int) -> float:
    """Mean of the precision at 101 recalls; where a higher recall has a higher precision, that one counts.

    Args:
        scores: [D]; right: bool [D]; objects: how many there are to find, at least one.
    """
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(hits / objects, RECALLS)
    return float(np.append(envelope, 0.0)[np.minimum(place, len(hits))].mean())


@dataclass
class MeanAveragePrecision:
    """Mean over classes that occur, and over IoU thresholds, of the average precision.

    Predictions [N, P, 5 + K] of a detector, targets [N, S, 5] of (class, or -1 for none, and box). Without classes in
    the predictions, all objects are of one class: are they found at all?
    """

    thresholds: tuple[float, ...] = COCO_IOUS
    scores: list[Array] = field(default_factory=list)
    classes: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)
    objects: list[Array] = field(default_factory=list)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        prediction = prediction.detach().float().cpu()
        if prediction.shape[-1] == 5:
            target = torch.cat([target[..., :1].clamp(max=0), target[..., 1:]], dim=-1)
        found = detections(prediction)
        right = matches(found, target, torch.tensor(self.thresholds) - 1e-6)
        real = found.scores >= 0
        self.scores.append(found.scores[real].numpy())
        self.classes.append(found.classes[real].numpy())
        self.right.append(right.transpose(1, 2)[real].numpy())  # [detections, T]
        self.objects.append(target[..., 0][target[..., 0] >= 0].numpy())

    def compute(self) -> float:
        if not self.objects or not sum(map(len, self.objects)):
            return math.nan
        scores, classes, right, objects = map(np.concatenate, (self.scores, self.classes, self.right, self.objects))
        values = [
            average_precision(scores[classes == kind], right[classes == kind, column], int((objects == kind).sum()))
            for kind in np.unique(objects)
            for column in range(len(self.thresholds))
        ]
        return float(np.mean(values))
