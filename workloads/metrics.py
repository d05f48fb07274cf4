"""Losses and metrics of dense prediction and of classification. A metric is an accumulator: update, then compute."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Mean:
    """Mean of a value per sample or pixel, given as `values(prediction, target)`."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, prediction: Tensor, target: Tensor) -> None:
        values = self.values(prediction, target)
        self.total += float(values.double().sum())
        self.count += values.numel()

    def compute(self) -> float:
        return self.total / self.count if self.count else math.nan


class AbsoluteRelativeError(Mean):
    """Mean of |predicted - true| / true depth over pixels (Eigen et al., NIPS 2014). Depths [N, 1, H, W] > 0."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs() / target


class AngularError(Mean):
    """Mean angle in degrees between normals [N, 3, H, W]; predictions need not have unit length."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        cosine = F.cosine_similarity(prediction.double(), target.double(), dim=1)
        return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


class Accuracy(Mean):
    """Share of samples whose largest logit [N, K] is the true class [N]."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == target).float()


class _Torchmetric:
    """A torchmetrics object, made when first updated: the library is slow to import."""

    def __init__(self) -> None:
        self._metric: Any = None

    def make(self) -> Any:
        raise NotImplementedError

    def arrange(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return prediction, target

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self._metric = self._metric or self.make()
        self._metric.update(*self.arrange(prediction.detach(), target))

    def compute(self) -> float:
        return float(self._metric.compute()) if self._metric else math.nan


class MeanIoU(_Torchmetric):
    """Mean over classes of intersection over union, counted over all pixels of all samples."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def make(self) -> Any:
        from torchmetrics.classification import MulticlassJaccardIndex

        return MulticlassJaccardIndex(self.classes)

    def arrange(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return prediction.argmax(dim=1), target


class EdgeF1(_Torchmetric):
    """F1 of edge pixels at probability 0.5, over all pixels, without the spatial slack that odsF grants."""

    def make(self) -> Any:
        from torchmetrics.classification import BinaryF1Score

        return BinaryF1Score()

    def arrange(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return prediction.sigmoid(), target.long()


def log_depth_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |log predicted - log true|: for small errors, the absolute relative error."""
    return (prediction.clamp_min(1e-3).log() - target.log()).abs().mean()


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos of the angle between normals."""
    lengths = prediction.square().sum(1) * target.square().sum(
        1
    )  # torch's own cosine_similarity takes ten times as long
    return (1 - (prediction * target).sum(1) * lengths.clamp_min(1e-16).rsqrt()).mean()


def edge_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy; edges, about one pixel in eight, weigh twice."""
    return F.binary_cross_entropy_with_logits(prediction, target, pos_weight=prediction.new_tensor(2.0))
