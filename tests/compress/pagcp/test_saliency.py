"""Criteria of saliency and the reconstruction of layers, by hand on models small enough to reason about."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from toy_metrics import AbsoluteError

from secateur.compress.dataflow import ChannelGroups, trace
from secateur.compress.pagcp.reconstruction import reconstruction_scores, removal_order
from secateur.compress.pagcp.saliency import _CRITERIA, find, saliency, score
from secateur.compress.pagcp.sensitivity import evidence
from secateur.compress.pagcp.windows import Rows, observe
from secateur.core.errors import BudgetError
from secateur.core.task import Task, Workload

GROUP = "deep.0"


def scores(squares: Workload, name: str, groups: ChannelGroups | None = None) -> Tensor:
    groups = groups or trace(squares.model, squares.calibration[0][0])
    criterion = find(name)
    found = evidence(criterion, groups, list(squares.calibration), squares.tasks)
    return score(groups[GROUP], dict(squares.model.state_dict()), criterion, found)


@pytest.mark.parametrize("name", ["l1", "l2", "taylor", "fisher", "bn", "reconstruction", "random"])
def test_every_criterion_scores_each_channel_and_does_so_again(squares: Workload, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in squares.model.state_dict().items()}
    one, other = scores(squares, name), scores(squares, name)
    assert one.shape == (16,)
    assert torch.isfinite(one).all()
    assert torch.equal(one, other)
    assert len(one.unique()) > 8
    assert all(torch.equal(tensor, before[key]) for key, tensor in squares.model.state_dict().items())
    assert all(parameter.grad is None for parameter in squares.model.parameters())


def test_fisher_is_half_the_squared_weight_times_the_squared_gradient(squares: Workload) -> None:
    weight, total = squares.model.deep[0].weight, torch.zeros(16)
    for inputs, targets in squares.calibration:
        found = squares.model(inputs)
        loss = sum(task.weight * task.loss(found[task.name], targets[task.name]) for task in squares.tasks)
        (gradient,) = torch.autograd.grad(loss, [weight])
        total += (weight * gradient).square().flatten(1).sum(1).detach() / 2
    torch.testing.assert_close(scores(squares, "fisher"), total)


def test_bn_scores_by_the_scale_of_the_norm(squares: Workload) -> None:
    torch.testing.assert_close(scores(squares, "bn"), squares.model.deep[1].weight.detach().abs())


def test_a_criterion_of_the_users_own_is_found_by_its_name(squares: Workload) -> None:
    @saliency("largest")
    def largest(weight: Tensor, gradient: Tensor | None) -> Tensor:
        return weight.abs().flatten(1).amax(1)

    try:
        expected = squares.model.deep[0].weight.detach().abs().flatten(1).amax(1)
        torch.testing.assert_close(scores(squares, "largest"), expected)
    finally:
        _CRITERIA.pop("largest")
    with pytest.raises(BudgetError, match='unknown saliency "largest"'):
        find("largest")


def test_a_channel_that_no_one_reads_goes_first_however_large_its_filter(squares: Workload) -> None:
    with torch.no_grad():
        squares.model.deep[0].weight[7] *= 100
        squares.model.quadrant[0][0].weight[:, 7] = 0
        squares.model.brightness[0].weight[:, 7] = 0
    groups = trace(squares.model, squares.calibration[0][0])
    assert int(scores(squares, "l1", groups).argmax()) == 7
    assert int(scores(squares, "reconstruction", groups).argmin()) == 7


def test_the_cheapest_channel_goes_first_when_the_rest_is_solved_again() -> None:
    """Against solving every choice by least squares, with columns that others stand in for."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(200, 5, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])
    z[:, 3] = z[:, 1] + 0.05 * z[:, 4]  # large, and nearly the second
    whole = z.sum(1)

    def cost(kept: tuple[int, ...]) -> float:
        scales = torch.linalg.lstsq(z[:, kept], whole).solution
        return float((whole - z[:, kept] @ scales).square().sum())

    order, left = removal_order(z.T @ z), tuple(range(5))
    for place in range(4):
        choices = {gone: cost(tuple(c for c in left if c != gone)) for gone in left}
        gone = int((order == place).nonzero())
        assert choices[gone] == pytest.approx(min(choices.values()), rel=1e-2, abs=1e-3)
        left = tuple(c for c in left if c != gone)
    assert {1, 3} & {int((order == 0).nonzero()), int((order == 1).nonzero())}


def test_groups_that_nothing_solvable_reads_are_left_to_l1(squares: Workload) -> None:
    groups = trace(squares.model, squares.calibration[0][0])
    found = reconstruction_scores(groups, list(squares.calibration), squares.tasks)
    assert set(found) == {group.name for group in groups.prunable}
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in found.values())
    without = score(groups[GROUP], dict(squares.model.state_dict()), find("reconstruction"), {})
    assert torch.equal(without, scores(squares, "l1"))


LAYERS = [
    nn.Conv2d(3, 5, kernel, stride, padding, dilation, padding_mode=mode, bias=bias)
    for (kernel, stride, padding, dilation), mode, bias in itertools.product(
        [(3, 1, 1, 1), ((1, 3), 2, (0, 2), 1), (3, 1, "same", 2), (5, 3, 0, 1)], ["zeros", "reflect"], [True, False]
    )
]


@pytest.mark.parametrize("layer", [*LAYERS, nn.Linear(11, 5)], ids=str)
def test_a_window_times_the_weight_is_what_the_layer_wrote(layer: nn.Module) -> None:
    model = nn.ModuleDict({"layer": layer})
    model.forward = lambda x: {"task": layer(x)}  # type: ignore[method-assign]
    task = Task("task", nn.functional.mse_loss, AbsoluteError(), "lower")
    seen: list[Rows] = []
    observe(model, ["layer"], [(torch.randn(8, 3, 9, 11), {})] * 2, (task,), lambda _, rows: seen.append(rows))
    assert len(seen) == 2
    for rows in seen:
        expected = rows.inputs.flatten(1) @ layer.weight.flatten(1).T + (0 if layer.bias is None else layer.bias)
        torch.testing.assert_close(rows.outputs, expected.detach(), rtol=1e-4, atol=1e-5)


def test_settings_name_the_criterion(squares: Workload) -> None:
    from secateur.compress.pagcp import prune
    from secateur.core.budget import Budget, Tolerance

    quick = replace(tiny.FAST, rounds=1, epochs=0, local_tolerance=0.5, max_passes=4)
    kept = {}
    for name in ("l1", "reconstruction"):
        found = prune(squares, Budget.parse("flops<=70%"), Tolerance.parse("90%"), replace(quick, saliency=name))
        kept[name] = {key: dims[0].tolist() for key, dims in found.point.channel_map.kept.items() if 0 in dims}
        assert found.settings["saliency"] == name
    assert kept["l1"] != kept["reconstruction"]
    assert np.all([len(index) for index in kept["l1"].values()])
