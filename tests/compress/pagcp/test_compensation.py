"""After a cut, the layers that read fewer channels are solved: exactly where the rest can stand in, and for good."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from published_loop import plain_losses
from torch import nn

from secateur.compress.channel_map import ChannelMap
from secateur.compress.dataflow import trace
from secateur.compress.least_squares import least_squares
from secateur.compress.pagcp import prune
from secateur.compress.pagcp.compensation import compensate, estimate_statistics, solve_readers
from secateur.core.budget import Budget, Tolerance
from secateur.core.task import Workload

KEEP = {"deep.0": range(4, 16), "stem.0": range(2, 12), "block.0.0": range(5)}


def cut(squares: Workload, keep: dict[str, range] = KEEP) -> tuple[nn.Module, ChannelMap]:
    channels = trace(squares.model, squares.calibration[0][0]).channel_map(keep)
    model = copy.deepcopy(squares.model)
    channels.apply(model)
    return model, channels


def test_a_channel_that_others_stand_in_for_is_no_loss(squares: Workload) -> None:
    """The first channel of a layer is twice the second, with a filter, scale and shift to match."""
    with torch.no_grad():
        conv, norm = squares.model.deep[0], squares.model.deep[1]
        conv.weight[0] = conv.weight[1]
        norm.weight[0], norm.bias[0] = 2 * norm.weight[1].abs(), 2 * norm.bias[1].abs()
        norm.weight[1], norm.bias[1] = norm.weight[1].abs(), norm.bias[1].abs()
        norm.running_mean[0], norm.running_var[0] = norm.running_mean[1], norm.running_var[1]
    model, channels = cut(squares, {"deep.0": range(1, 16)})
    inputs = squares.test[0][0]
    expected, lost = squares.model(inputs)["brightness"], model(inputs)["brightness"]
    solve_readers(model, squares.model, channels, squares.calibration, squares.tasks)
    found = model(inputs)["brightness"]
    assert (lost - expected).abs().mean() > 1e-2
    assert (found - expected).abs().mean() < 0.1 * (lost - expected).abs().mean()


def test_it_gains_on_data_that_it_has_not_seen(squares: Workload) -> None:
    before = {name: tensor.clone() for name, tensor in squares.model.state_dict().items()}
    model, channels = cut(squares)
    lost = plain_losses(model, squares.test, squares.tasks)
    compensate(model, squares.model, channels, squares.calibration, squares.tasks)
    gained = plain_losses(model, squares.test, squares.tasks)
    assert all(gained[task] < lost[task] for task in lost)
    assert all(torch.equal(tensor, before[name]) for name, tensor in squares.model.state_dict().items())


def test_least_squares_stay_near_the_weights_where_the_data_do_not_say() -> None:
    """An input that is always zero keeps its weight; the others give the outputs exactly."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=draw)
    x[:, 3] = 0
    truth = torch.tensor([[1.0, -2.0, 0.5, 0.0]])
    weight, bias = least_squares(x, x @ truth.T + 3, torch.tensor([[0.0, 0.0, 0.0, 7.0]]), torch.zeros(1), 0.01)
    assert bias is not None
    torch.testing.assert_close(weight, torch.tensor([[1.0, -2.0, 0.5, 7.0]]), rtol=2e-2, atol=1e-3)
    assert float(bias) == pytest.approx(3, abs=2e-2)


def test_statistics_are_means_over_batches_and_modes_stay(squares: Workload) -> None:
    model = copy.deepcopy(squares.model).train()
    model.block.eval()
    momentum = model.stem[1].momentum
    estimate_statistics(model, squares.calibration, squares.tasks)
    seen = [model.stem[0](inputs).mean((0, 2, 3)) for inputs, _ in squares.calibration]
    torch.testing.assert_close(model.stem[1].running_mean, torch.stack(seen).mean(0).detach())
    assert model.training
    assert not model.block.training
    assert model.stem[1].momentum == momentum


def test_pruning_with_compensation_loses_less_before_fine_tuning(squares: Workload) -> None:
    quick = replace(tiny.FAST, rounds=1, epochs=0, local_tolerance=0.5, max_passes=12)
    budget, tolerance = Budget.parse("flops<=50%"), Tolerance.parse("90%")
    plain = prune(squares, budget, tolerance, quick)
    mended = prune(squares, budget, tolerance, replace(quick, compensate=True))
    assert mended.costs == plain.costs
    lost, gained = (plain_losses(each.model, squares.test, squares.tasks) for each in (plain, mended))
    assert sum(gained.values()) < sum(lost.values())
