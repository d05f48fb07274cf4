"""Weightings of tasks, against the equations of their papers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch

from secateur.compress.training.recipe import Recipe
from secateur.compress.training.weighting import WEIGHTINGS, DynamicAverage, Uncertainty
from secateur.core.errors import BudgetError

LOSSES = torch.tensor([2.0, 0.5])  # the tasks of tiny weigh 1 and 4


def epochs(*losses: tuple[float, float]) -> list[dict[str, dict[str, float]]]:
    return [{"tasks": {"quadrant": one, "brightness": other}} for one, other in losses]


def test_fixed_weights_are_the_tasks_own() -> None:
    assert float(WEIGHTINGS["fixed"](tiny.tasks())(LOSSES)) == pytest.approx(2.0 + 4 * 0.5)


def test_uncertainty_starts_from_the_tasks_weights() -> None:
    weighting = Uncertainty(tiny.tasks())
    assert weighting.weights().tolist() == pytest.approx([1.0, 4.0])
    assert float(weighting(LOSSES)) == pytest.approx(2.0 + 4 * 0.5 - math.log(4))


def test_uncertainty_settles_where_each_weight_is_one_over_its_loss() -> None:
    """d/ds (exp(-s) L + s) = 0 at exp(-s) = 1 / L."""
    weighting = Uncertainty(tiny.tasks())
    optimizer = torch.optim.Adam(weighting.parameters(), 0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting(LOSSES).backward()
        optimizer.step()
    assert weighting.weights().tolist() == pytest.approx([0.5, 2.0], rel=1e-2)


def test_a_task_of_weight_zero_stays_without_any() -> None:
    tasks = (replace(tiny.tasks()[0], weight=0.0), tiny.tasks()[1])
    weighting = Uncertainty(tasks)
    weighting(LOSSES).backward()
    assert weighting.weights()[0] == 0
    assert weighting.log_variance.grad[0] == 0


def test_dynamic_average_favours_the_task_that_falls_slower() -> None:
    """Ratios 1 and 0.5 of the last two epochs: λ = 2·softmax([1, 0.5] / 2)."""
    weighting = DynamicAverage(tiny.tasks())
    for history in ([], epochs((3, 3))):
        weighting.start_epoch(history)
        assert weighting.weights().tolist() == [1.0, 4.0]
    weighting.start_epoch(epochs((9, 1), (3, 2), (3, 1)))
    high, low = math.exp(0.5), math.exp(0.25)
    assert weighting.weights().tolist() == pytest.approx([2 * high / (high + low), 8 * low / (high + low)])


@pytest.mark.parametrize(
    "wrong", [{"weighting": "gradnorm"}, {"accumulate": 0}, {"patience": -1}, {"precision": "int8"}]
)
def test_a_wrong_recipe_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BudgetError, match=str(next(iter(wrong)))):
        Recipe(1, **wrong)  # type: ignore[arg-type]
