"""Metrics against values worked out by hand."""

import math

import pytest
import torch

from secateur.workloads.metrics import (
    AbsoluteRelativeError,
    Accuracy,
    AngularError,
    EdgeF1,
    MeanIoU,
    cosine_loss,
    edge_loss,
    log_depth_loss,
)


def test_absolute_relative_error_is_over_all_pixels_of_all_batches() -> None:
    metric = AbsoluteRelativeError()
    metric.update(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 2.0))
    metric.update(torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), 2.0))
    assert metric.compute() == pytest.approx(0.5 / 4)


def test_angles_are_in_degrees_and_length_does_not_matter() -> None:
    metric = AngularError()
    target = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    for vector in ([5.0, 0, 0], [0, 2.0, 0], [1.0, 1.0, 0]):
        metric.update(torch.tensor(vector).view(1, 3, 1, 1), target)
    assert metric.compute() == pytest.approx((0 + 90 + 45) / 3, abs=1e-3)


def test_mean_iou() -> None:
    metric = MeanIoU(2)
    logits = torch.tensor([[0.0, 1, 1, 1], [1, 0, 0, 2]]).view(1, 2, 2, 2)  # classes 1 0 0 1
    metric.update(logits, torch.tensor([[1, 0, 1, 1]]).view(1, 2, 2))
    assert metric.compute() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_edge_f1() -> None:
    metric = EdgeF1()
    metric.update(torch.tensor([3.0, 3, -3, -3]), torch.tensor([1.0, 0, 1, 0]))
    assert metric.compute() == pytest.approx(0.5)


def test_accuracy() -> None:
    metric = Accuracy()
    metric.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    assert metric.compute() == 0.75


def test_a_metric_without_data_is_not_a_number() -> None:
    assert all(math.isnan(metric.compute()) for metric in (AngularError(), EdgeF1(), MeanIoU(3)))


def test_losses_are_zero_for_the_truth_and_larger_elsewhere() -> None:
    depth = torch.rand(2, 1, 4, 4) + 1
    normals = torch.nn.functional.normalize(torch.randn(2, 3, 4, 4), dim=1)
    edges = (torch.rand(2, 1, 4, 4) < 0.3).float()
    assert float(log_depth_loss(depth, depth)) == 0
    assert float(log_depth_loss(1.1 * depth, depth)) == pytest.approx(math.log(1.1), rel=1e-4)
    assert float(cosine_loss(normals, normals)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_loss(-normals, normals)) == pytest.approx(2, abs=1e-6)
    assert float(edge_loss(100 * (2 * edges - 1), edges)) < 1e-6 < float(edge_loss(0 * edges, edges))
