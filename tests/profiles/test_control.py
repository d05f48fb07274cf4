"""The figures of control, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from elastic_case import random_table

from secateur.profiles.control import control, hypervolume, plot, preferences, spearman, uniformity


def test_hypervolume_of_boxes() -> None:
    assert hypervolume(np.array([[1.0, 1.0]]), 2.0) == 1.0
    assert hypervolume(np.array([[1.0, 1.5], [1.5, 1.0]]), 2.0) == pytest.approx(0.75)  # 0.5 + 0.5 - 0.25
    assert hypervolume(np.array([[1.0, 1.0, 1.0], [1.5, 0.5, 1.0]]), 2.0) == pytest.approx(1 + 0.5 * 0.5)
    assert hypervolume(np.array([[3.0, 0.0]]), 2.0) == 0.0
    assert hypervolume(np.array([[0.5]]), 2.0) == 1.5


def test_hypervolume_of_many_points_agrees_with_sampling() -> None:
    draw = np.random.default_rng(0)
    points = draw.uniform(0.8, 2.1, (12, 4))
    samples = draw.uniform(0, 2, (200_000, 4))
    covered = (samples[:, None] >= points[None]).all(2).any(1).mean() * 2**4
    assert hypervolume(points, 2.0) == pytest.approx(covered, rel=0.05)


def test_uniformity_is_one_where_losses_are_inverse_to_preferences() -> None:
    assert uniformity(np.array([1.0, 3.0]), np.array([0.75, 0.25])) == pytest.approx(1)
    assert uniformity(np.array([1.0, 1.0]), np.array([0.75, 0.25])) == pytest.approx(
        1 - (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    )


def test_rank_correlation_with_ties() -> None:
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 40])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), np.array([5.0, 4, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 1, 2, 2])) == pytest.approx(0.894427, abs=1e-5)
    assert spearman(np.array([1.0, 2]), np.array([3.0, 3])) == 0


def test_preferences_lie_on_the_simplex_and_hold_its_corners() -> None:
    found = preferences(3)
    assert found.shape == (24, 3)
    np.testing.assert_allclose(found.sum(1), 1)
    assert {(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)} <= set(map(tuple, found.tolist()))


def test_choices_keep_their_budgets_and_follow_preferences(tmp_path: Path) -> None:
    table = random_table(0)
    found = control(table, [2e6, 3e6, 4e6])
    assert found.compliance == 1
    assert 0.4 < found.use <= 1
    assert found.hypervolume == sorted(found.hypervolume)
    assert all(value >= 0 for value in found.range.values())
    assert found.violations == 0
    assert all(value >= 0 for value in found.rho.values())
    plot(table, {"one": found}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
