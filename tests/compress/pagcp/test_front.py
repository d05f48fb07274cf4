"""One run leaves a point for each that was asked for; a budget picks among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from secateur.compress.pagcp import prune
from secateur.compress.pagcp.front import epochs, round_limits, with_front
from secateur.compress.pagcp.settings import Settings
from secateur.core.budget import Budget, Tolerance
from secateur.core.costs import Costs
from secateur.core.errors import BudgetError, BudgetNotMetError
from secateur.core.task import Workload
from secateur.verbs.prune import settings_of
from secateur.verbs.select import select

BEFORE = Costs(1000, 500, 10, 10)
QUICK = replace(tiny.FAST, epochs=3, max_passes=20, local_tolerance=0.5)


def limits(budget: str | None, shares: str, number: int) -> list[tuple[str, float]]:
    found, settings = with_front(Budget.parse(budget), settings_of(None, front=shares))
    return [(limit.kind, pytest.approx(limit.value)) for limit in round_limits(found, settings, number, BEFORE)]


def test_without_a_budget_the_points_are_of_flops_and_the_smallest_is_the_budget() -> None:
    budget, settings = with_front(Budget.parse(None), settings_of(None, front="80%,0.6, 40%"))
    assert str(budget) == str(Budget.parse("flops<=40%"))
    assert settings.rounds == 3
    assert [limits(None, "80%,60%,40%", number) for number in range(3)] == [[("flops", s)] for s in (0.8, 0.6, 0.4)]


def test_with_a_budget_the_points_are_of_all_that_it_limits_and_none_goes_beyond_it() -> None:
    budget = "flops<=30%,params<=0.35K"
    found = [limits(budget, "80%,60%", number) for number in range(3)]
    assert found == [
        [("flops", 0.8), ("params", 0.8)], [("flops", 0.6), ("params", 0.7)], [("flops", 0.3), ("params", 0.7)],
    ]  # fmt: skip


def test_without_a_front_the_steps_are_geometric() -> None:
    found = [round_limits(Budget.parse("flops<=25%"), Settings(rounds=2), n, BEFORE)[0].value for n in (0, 1)]
    assert found == pytest.approx([0.5, 0.25])


def test_epochs_are_shared_out_whole() -> None:
    assert epochs(Settings(epochs=9, rounds=2)) == [3, 6]
    assert epochs(with_front(Budget.parse(None), Settings(epochs=10, front=(0.8, 0.6, 0.4)))[1]) == [3, 3, 4]


@pytest.mark.parametrize("front", ["40%,60%", "60%,60%", "120%,50%", "0%", "half", ""])
def test_a_front_that_makes_no_sense_is_refused(front: str) -> None:
    with pytest.raises(BudgetError, match="front"):
        settings_of(None, front=front)


def test_a_front_has_no_other_rounds() -> None:
    with pytest.raises(BudgetError, match="--rounds"):
        settings_of(None, front="80%", rounds=3)


def test_one_run_leaves_every_point_and_select_picks_by_any_budget(squares: Workload, tmp_path: Path) -> None:
    result = prune(squares, Budget.parse(None), Tolerance.parse("95%"), replace(QUICK, front=(0.8, 0.6, 0.4)))
    whole = result.costs_before
    reached = [point.costs.flops / whole.flops for point in result.points]
    assert all(share <= asked for share, asked in zip(reached, (0.8, 0.6, 0.4), strict=True)), reached
    assert [entry["round"] for entry in result.history["fine_tuning"]] == [0, 1, 2]
    bundle = result.save(tmp_path / "front")
    assert len(list(bundle.path.rglob("weights.safetensors"))) == 3
    params = [point.costs.params / whole.params for point in result.points]
    for number, budget in enumerate(("flops<=80%", "flops<=60%", f"params<={100 * params[2]:.4f}%")):
        chosen = select(bundle, budget)
        assert chosen.point >= number
        assert Budget.parse(budget).misses(result.points[chosen.point].costs, whole) == []
    assert select(bundle, "flops<=41%").point == 2
    with pytest.raises(BudgetNotMetError):
        select(bundle, "flops<=10%")


def test_a_point_beyond_the_budget_or_out_of_reach_is_said(squares: Workload) -> None:
    with pytest.raises(BudgetError, match="not above the budget"):
        prune(squares, Budget.parse("flops<=50%"), None, replace(QUICK, front=(0.8, 0.4)))
    lazy = replace(QUICK, front=(0.02, 0.01), max_passes=1, epochs=0)
    found = prune(squares, Budget.parse(None), Tolerance.parse("95%"), lazy)
    assert any(miss.startswith("point 0: flops<=2%: reached") for miss in found.misses)
