"""Choosing widths: the same answers as looking at every configuration in plain Python."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from elastic_case import combinations, random_table

from secateur.core.elastic import Chooser, Wish, choose
from secateur.core.elastic.choose import OBJECTIVES
from secateur.core.elastic.table import Table
from secateur.core.errors import BudgetError

ALL = ("flops", "params", "size", "memory", "latency", "energy")


def scaled(table: Table, task: str, row: int, d: int) -> float:
    values = table.fitted[task]
    q = (values[row, d] - values.min()) / (values.max() - values.min())
    return float(q if table.better[task] == "higher" else 1 - q)


def regret(table: Table, row: int, chosen: dict[str, int], weights: dict[str, float]) -> float:
    terms = [weights[task] * (1 - scaled(table, task, row, d)) for task, d in chosen.items()]
    return max(terms) + 0.01 * sum(terms)


def cost(table: Table, kind: str, row: int, chosen: dict[str, int]) -> float:
    if kind == "memory":
        peak = max(table.costs["activations"].decoders[t][row, d] for t, d in chosen.items())
        return cost(table, "size", row, chosen) + max(peak, table.costs["activations"].shared[row])
    on_target = {"latency": table.latency["cpu"].figures, "energy": table.energy["cpu"]}
    figures = {**table.costs, **on_target}[kind]
    return figures.shared[row] + sum(figures.decoders[t][row, d] for t, d in chosen.items())


def within(table: Table, kind: str, share: float, tasks: tuple[str, ...] | None = None) -> float:
    costs = sorted(cost(table, kind, *each) for each in combinations(table, tasks))
    return costs[int(share * (len(costs) - 1))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ALL)
def test_the_best_of_all_configurations(seed: int, kind: str) -> None:
    table = random_table(seed)
    weights = {"depth": 2 / 3, "edges": 1 / 3}
    limit = within(table, kind, 0.4)
    best = min(
        regret(table, *each, weights) for each in combinations(table) if cost(table, kind, *each) <= limit + 1e-9
    )
    choice = Chooser(table).pick(Wish({kind: limit}, {"depth": 2}))
    assert choice.met
    assert choice.costs[kind] <= limit * (1 + 1e-9)
    assert -choice.utility == pytest.approx(best)
    assert regret(table, choice.row, dict(choice.decoders), weights) == pytest.approx(best)
    assert choice.costs[kind] == pytest.approx(cost(table, kind, choice.row, dict(choice.decoders)))


@pytest.mark.parametrize("seed", range(5))
def test_several_limits_all_hold(seed: int) -> None:
    table = random_table(seed)
    limits = {kind: within(table, kind, 0.6) for kind in ALL}
    choice = Chooser(table).pick(Wish(limits))
    possible = [e for e in combinations(table) if all(cost(table, k, *e) <= limit for k, limit in limits.items())]
    assert choice.met == bool(possible)
    assert not choice.met or all(choice.costs[kind] <= limit * (1 + 1e-9) for kind, limit in limits.items())


def test_an_infeasible_limit_gives_the_smallest_and_says_so() -> None:
    table = random_table(1)
    choice = Chooser(table).pick(Wish({"flops": 1.0}))
    assert not choice.met
    assert choice.costs["flops"] == pytest.approx(within(table, "flops", 0))


def test_tasks_that_do_not_run_cost_nothing() -> None:
    table = random_table(2)
    chooser = Chooser(table, tasks=("edges",))
    limit = within(table, "flops", 0.3, ("edges",))
    choice = chooser.pick(Wish({"flops": limit}))
    assert set(choice.decoders) == {"edges"}
    best = max(
        scaled(table, "edges", row, chosen["edges"])
        for row, chosen in combinations(table, ("edges",))
        if cost(table, "flops", row, chosen) <= limit
    )
    assert scaled(table, "edges", choice.row, choice.decoders["edges"]) == pytest.approx(best)


def test_a_floor_holds_or_is_flagged() -> None:
    """Metrics lie in 0.5..1, the original's is 0.8; depth is better when lower."""
    table = random_table(3)
    chooser = Chooser(table)
    choice = chooser.pick(Wish(prefer={"edges": 9}, floors={"depth": -0.2}))  # at least 20 % better
    assert choice.met
    assert choice.metrics["depth"] <= 0.64
    hopeless = chooser.pick(Wish(floors={"depth": -0.9}))
    assert not hopeless.met
    assert hopeless.metrics["depth"] == pytest.approx(table.metrics["depth"].min())


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_rule_gives_the_preferred_task_the_larger_share(seed: int) -> None:
    table = random_table(seed)
    choice = Chooser(table).pick(Wish({"flops": within(table, "flops", 0.7)}, {"edges": 3}, objective="paper"))
    flops = table.costs["flops"].decoders
    share = {t: flops[t][choice.row, d] / flops[t][choice.row].max() for t, d in choice.decoders.items()}
    assert share["edges"] >= share["depth"]


def test_weighted_sum_is_the_largest_sum() -> None:
    table = random_table(4)
    best = min(
        sum(0.5 * (1 - scaled(table, t, row, d)) for t, d in chosen.items()) for row, chosen in combinations(table)
    )
    assert -Chooser(table).pick(Wish(objective="sum")).utility == pytest.approx(best)


def test_of_equals_the_cheapest_wins() -> None:
    table = random_table(5)
    for values in table.fitted.values():
        values[:] = 0.7
    assert Chooser(table).pick(Wish()).costs["flops"] == pytest.approx(within(table, "flops", 0))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["flops", "latency"])
def test_many_tasks_are_chosen_by_thresholds_with_the_same_minimax(
    seed: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ("depth", "edges", "normals", "parts")
    table = random_table(seed, tasks)
    wish = Wish({kind: within(table, kind, 0.3)}, {"parts": 3})
    exact = Chooser(table).pick(wish)
    monkeypatch.setattr(choose, "EXHAUSTIVE", 1)
    found = Chooser(table).pick(wish)
    weights = {task: (3 if task == "parts" else 1) / 6 for task in tasks}
    assert found.met
    assert found.costs[kind] <= wish.limits[kind] * (1 + 1e-9)
    worst = [max(weights[t] * (1 - scaled(table, t, c.row, d)) for t, d in c.decoders.items()) for c in (exact, found)]
    assert worst[1] <= worst[0] + 0.02  # exact up to the augmentation, which only the exhaustive search weighs
    tight = Chooser(table).pick(Wish({kind: 1e-9}))
    assert not tight.met


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(prefer={"dept": 2}), "no task"),
        (Wish(prefer={"depth": -1}), "the weight of"),
        (Wish(prefer={"depth": math.nan}), "the weight of"),
        (Wish(prefer={"depth": 0, "edges": 0}), "every task has the weight 0"),
        (Wish(floors={"dept": 0.1}), "no task"),
        (Wish({"joy": 1.0}), "no figures of joy"),
        (Wish(objective="best"), "unknown objective"),  # type: ignore[arg-type]
    ],
)
def test_wishes_that_make_no_sense_are_refused(wish: Wish, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        Chooser(random_table()).pick(wish)


@pytest.mark.parametrize("kind", ["latency", "energy"])
def test_a_target_without_figures_is_named(kind: str) -> None:
    with pytest.raises(BudgetError, match=f'no figures of {kind} on "fpga:zcu102"'):
        Chooser(random_table(), target="fpga:zcu102").pick(Wish({kind: 8.0}))


def test_only_the_given_rows_are_chosen_among() -> None:
    table = random_table(6)
    chooser = Chooser(table, rows=(2, 5))
    draw = np.random.default_rng(0)
    for objective in OBJECTIVES:
        limit = float(draw.uniform(1.5e6, 4e6))
        assert chooser.pick(Wish({"flops": limit}, objective=objective)).row in (2, 5)  # type: ignore[arg-type]


def test_choosing_needs_neither_torch_nor_pydantic(tmp_path: Path) -> None:
    script = (
        "import sys; from secateur.export.runtime import Controller, ElasticSession; "
        "print([n for n in ('torch', 'onnx', 'pydantic', 'onnxruntime') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("limit", [0.0, -0.5])
@pytest.mark.parametrize("exhaustive", [True, False])
def test_when_no_time_is_left_the_smallest_is_given(
    limit: float, exhaustive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "EXHAUSTIVE", choose.EXHAUSTIVE if exhaustive else 0)
    table = random_table(0)
    choice = Chooser(table).pick(Wish({"latency": limit}))
    assert not choice.met
    assert choice.costs["latency"] == pytest.approx(within(table, "latency", 0.0))


def test_limits_and_weights_are_numbers_and_a_task_runs_once() -> None:
    table = random_table(0)
    with pytest.raises(BudgetError, match="is no number"):
        Chooser(table).pick(Wish({"latency": math.nan}))
    with pytest.raises(BudgetError, match="weight"):
        Chooser(table).pick(Wish(prefer={"depth": "2"}))  # type: ignore[dict-item]
    assert Chooser(table, tasks=("depth", "depth")).tasks == ("depth",)


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_rule_gives_way_to_floors_too(seed: int) -> None:
    table = random_table(seed)
    wish = {"limits": {"flops": within(table, "flops", 0.5)}, "prefer": {"depth": 2.0}}
    for floor in (0.0, 0.05, 0.2, 0.5):
        plain, ruled = (
            Chooser(table).pick(Wish(**wish, floors={"edges": floor}, objective=each)).met
            for each in ("chebyshev", "paper")
        )
        assert plain == ruled


@pytest.mark.parametrize("seed", range(5))
def test_a_floor_out_of_reach_is_approached_alike_by_thresholds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(seed)
    wish = Wish({"flops": within(table, "flops", 0.5)}, floors={"depth": -10.0})
    every = Chooser(table).pick(wish)
    monkeypatch.setattr(choose, "EXHAUSTIVE", 0)
    found = Chooser(table).pick(wish)
    assert not found.met
    assert found.costs["flops"] <= wish.limits["flops"] * (1 + 1e-9)
    assert found.metrics["depth"] == pytest.approx(every.metrics["depth"])
