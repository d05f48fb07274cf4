"""The exchange rate of loss and metric, on models whose metric is a known function of the loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from published_loop import plain_losses
from torch import Tensor

from secateur.compress.dataflow import trace
from secateur.compress.pagcp.exchange import loss_per_drop
from secateur.compress.pagcp.saliency import find
from secateur.core.task import Task, Workload


class Worth:
    """A metric that loses `drop` of 1 for each unit of loss."""

    def __init__(self, loss: Any, drop: float) -> None:
        self.loss, self.drop, self.found = loss, drop, list[float]()

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.found.append(float(self.loss(prediction, target)))

    def compute(self) -> float:
        return 1 - self.drop * sum(self.found) / len(self.found)


def rates(squares: Workload, tasks: tuple[Task, ...]) -> dict[str, float]:
    groups = trace(squares.model, squares.calibration[0][0], squares.task_names)
    return loss_per_drop(groups, squares.calibration, tasks, find("l1"))


@pytest.mark.parametrize("drop", [0.01, 0.2])
def test_the_rate_is_what_the_metric_was_made_of(squares: Workload, drop: float) -> None:
    tasks = tuple(replace(task, metric=Worth(task.loss, drop), better="higher") for task in squares.tasks)
    before = {task.name: metric_of(squares, task) for task in tasks}
    for name, rate in rates(squares, tasks).items():
        assert rate == pytest.approx(before[name] / drop, rel=1e-3)


@torch.no_grad()
def metric_of(squares: Workload, task: Task) -> float:
    metric = Worth(task.loss, task.metric.drop)  # type: ignore[attr-defined]
    for inputs, targets in squares.calibration:
        metric.update(squares.model.eval()(inputs)[task.name], targets[task.name])
    return metric.compute()


@torch.no_grad()
def test_an_error_that_is_the_loss_costs_as_much_as_it_rises(squares: Workload) -> None:
    class Error(Worth):
        def compute(self) -> float:
            return sum(self.found) / len(self.found)

    tasks = tuple(replace(task, metric=Error(task.loss, 1.0), better="lower") for task in squares.tasks)
    found = rates(squares, tasks)
    for task in tasks:
        losses = [float(task.loss(squares.model.eval()(x)[task.name], y[task.name])) for x, y in squares.calibration]
        assert found[task.name] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_a_metric_that_never_drops_counts_as_its_loss(squares: Workload) -> None:
    class Blind(Worth):
        def compute(self) -> float:
            return 1.0

    tasks = tuple(replace(task, metric=Blind(task.loss, 1.0), better="higher") for task in squares.tasks)
    found = rates(squares, tasks)
    assert found == pytest.approx(plain_losses(squares.model, squares.calibration, squares.tasks), rel=1e-3)


def test_a_metric_that_breaks_counts_as_its_loss_and_every_pass_is_counted(squares: Workload) -> None:
    class Broken(Worth):
        def compute(self) -> float:
            return -math.inf if self.found[0] > first else 1.0

    first = min(plain_losses(squares.model, squares.calibration[:1], squares.tasks).values())
    tasks = tuple(replace(task, metric=Broken(task.loss, 1.0), better="higher") for task in squares.tasks)
    groups, counted = trace(squares.model, squares.calibration[0][0], squares.task_names), list[dict[str, int]]()
    found = loss_per_drop(groups, squares.calibration, tasks, find("l1"), count=lambda kept: counted.append(dict(kept)))
    assert all(math.isfinite(rate) and rate > 0 for rate in found.values())
    assert counted[0] == {}
    assert [kept["deep.0"] for kept in counted[1:]] == [15, 13, 12]  # of 16, without 10, 20 and 30 %
