"""Losses and metrics of dense prediction and of classification. A metric is an accumulator: update, then compute."""

from __future__ import annotations

import math

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


class MeanIoU:
    """Mean over the classes that occur of intersection over union, counted over all pixels of all samples.
    Logits [N, K, ...], classes [N, ...]."""

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.long)  # [true, predicted]

    def update(self, prediction: Tensor, target: Tensor) -> None:
        classes = len(self.confusion)
        pairs = classes * target.flatten() + prediction.argmax(dim=1).flatten()
        self.confusion += torch.bincount(pairs.cpu(), minlength=classes**2).view(classes, classes)

    def compute(self) -> float:
        right = self.confusion.diagonal()
        either = self.confusion.sum(0) + self.confusion.sum(1) - right
        return float((right[either > 0] / either[either > 0]).mean())


class EdgeF1:
    """F1 of edge pixels at probability 0.5, over all pixels, without the spatial slack that odsF grants."""

    def __init__(self) -> None:
        self.right = self.found = self.real = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        found, real = prediction > 0, target > 0.5
        self.right += int((found & real).sum())
        self.found += int(found.sum())
        self.real += int(real.sum())

    def compute(self) -> float:
        return 2 * self.right / (self.found + self.real) if self.found + self.real else math.nan


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
