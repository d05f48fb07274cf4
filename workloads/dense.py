"""Losses and metrics of the published dense benchmarks, with regions that do not count; and deep supervision.

Vandenhende et al., MTI-Net (ECCV 2020), and Maninis et al., ASTMT (CVPR 2019), whose protocol it follows. A pixel does
not count where a class, an edge or a saliency is IGNORE, a depth is 0, or a normal is the zero vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.task import Task

IGNORE = 255


def segmentation_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of logits [N, K, H, W] with classes [N, H, W]."""
    values = F.cross_entropy(prediction, target, ignore_index=IGNORE, reduction="none")
    return _mean(values, target != IGNORE)


def depth_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |predicted - true| in metres, [N, 1, H, W]."""
    return _mean((prediction - target).abs(), target > 0)


def normals_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |difference| of the components of unit normals [N, 3, H, W]."""
    difference = (F.normalize(prediction, dim=1) - target).abs().mean(dim=1)
    return _mean(difference, known_normals(target))


def edge_loss(positive: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Binary cross entropy of logits [N, 1, H, W]; edges weigh `positive`, the rest 1 - `positive`."""

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        values = F.binary_cross_entropy_with_logits(prediction, (target > 0.5).float(), reduction="none")
        return _mean(torch.where(target > 0.5, positive * values, (1 - positive) * values), target != IGNORE)

    return loss


def saliency_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """As `edge_loss`, weighted by the share of the other kind of pixels in the batch (Xie and Tu, HED, ICCV 2015)."""
    counted = target != IGNORE
    background = _mean((target < 0.5).float(), counted)
    return edge_loss(float(background))(prediction, target)


def known_normals(target: Tensor) -> Tensor:
    """bool [N, H, W]: where there is a normal."""
    return target.square().sum(dim=1) > 0.25


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean where it counts; zero where nothing does."""
    return (values * counted).sum() / counted.sum().clamp_min(1)


def deep_supervision(tasks: Sequence[Task], key: str) -> Callable[[Mapping[str, Any], Mapping[str, Tensor]], Tensor]:
    """A further training loss: each task's own loss on every prediction below `key` of the output, enlarged."""

    def loss(output: Mapping[str, Any], targets: Mapping[str, Tensor]) -> Tensor:
        values = []
        for scale in output[key].values():
            for task in tasks:
                enlarged = F.interpolate(
                    scale[task.name], size=targets[task.name].shape[-2:], mode="bilinear", align_corners=False
                )
                values.append(task.weight * task.loss(enlarged, targets[task.name]))
        return torch.stack(values).sum()

    return loss


class SegmentationIoU:
    """Mean over all classes of intersection over union, counted over all pixels of all samples; as in the published
    evaluation, a class that never occurs counts zero."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        """[true, predicted]"""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        classes = len(self.counts)
        counted = target != IGNORE
        pairs = target[counted] * classes + prediction.argmax(dim=1)[counted]
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def compute(self) -> float:
        hits = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return float((hits / union.clamp_min(1)).mean()) if self.counts.sum() else math.nan


class _MeanOver:
    """Mean over all pixels that count of all samples."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor, counted: Tensor) -> None:
        self.total += float(values[counted].double().sum())
        self.count += int(counted.sum())

    def compute(self) -> float:
        return self.total / self.count if self.count else math.nan


class DepthRMSE(_MeanOver):
    """Root of the mean squared error in metres over all pixels of known depth."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.add((prediction - target).square(), target > 0)

    def compute(self) -> float:
        return math.sqrt(super().compute())


class MeanAngle(_MeanOver):
    """Mean angle in degrees over all pixels of known normal."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        cosine = F.cosine_similarity(prediction.double(), target.double(), dim=1).clamp(-1, 1)
        self.add(torch.rad2deg(torch.acos(cosine)), known_normals(target))


class MaxF:
    """Saliency: precision and recall of each picture averaged over pictures, F of the averages, at the best of 15
    thresholds from 0.2 to 0.9 (ASTMT's evaluation; β² = 1). Logits [N, 1, H, W]."""

    thresholds = torch.linspace(0.2, 0.9, 15)

    def __init__(self) -> None:
        self.precision, self.recall = torch.zeros(15, dtype=torch.float64), torch.zeros(15, dtype=torch.float64)
        self.pictures = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        found = prediction.sigmoid() > self.thresholds.view(-1, 1, 1, 1, 1)  # [15, N, 1, H, W]
        found, wanted = found & (target != IGNORE), (target > 0.5) & (target != IGNORE)
        hits = (found & wanted).flatten(2).sum(2).double()  # [15, N]
        self.precision += (hits / found.flatten(2).sum(2).clamp_min(1)).sum(1)
        self.recall += (hits / wanted.flatten(1).sum(1).clamp_min(1)).sum(1)
        self.pictures += len(prediction)

    def compute(self) -> float:
        if not self.pictures:
            return math.nan
        precision, recall = self.precision / self.pictures, self.recall / self.pictures
        return float((2 * precision * recall / (precision + recall).clamp_min(1e-12)).max())


class OptimalEdgeF:
    """F of edges at the one threshold that is best for the whole data set. Logits [N, 1, H, W].

    An edge is right within `slack` of the picture's diagonal of a true one, as in Martin, Fowlkes and Malik (T-PAMI
    2004). Differs from the published odsF: found edges are not thinned first, several may be right through one true
    edge, and nearness is that of a square window. Figures compare with one another, not with published ones.
    """

    BINS = 100

    def __init__(self, slack: float = 0.0075) -> None:
        self.slack = slack
        self.found, self.right, self.true = (torch.zeros(self.BINS, dtype=torch.float64) for _ in range(3))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        reach = round(self.slack * math.hypot(*prediction.shape[-2:]))
        counted = target != IGNORE
        probability, edge = prediction.sigmoid() * counted, ((target > 0.5) & counted).to(prediction.dtype)
        near = F.max_pool2d(edge, 2 * reach + 1, 1, reach) > 0
        seen = F.max_pool2d(probability, 2 * reach + 1, 1, reach)
        self.found += self._histogram(probability[counted])
        self.right += self._histogram(probability[counted & near])
        self.true += self._histogram(seen[edge > 0])

    def _histogram(self, probability: Tensor) -> Tensor:
        bins = (probability * self.BINS).long().clamp(0, self.BINS - 1)
        return torch.bincount(bins.flatten(), minlength=self.BINS).double()

    def compute(self) -> float:
        if not float(self.true.sum()):
            return math.nan
        found, right, true = (counts.flip(0).cumsum(0)[:-1] for counts in (self.found, self.right, self.true))
        precision, recall = right / found.clamp_min(1), true / self.true.sum()
        return float((2 * precision * recall / (precision + recall).clamp_min(1e-12)).max())
