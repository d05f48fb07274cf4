"""The table: exact where it was evaluated, costs as those of cut models, and the search where there is too much."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from elastic_tiny import FAST, elastic, workload
from hypothesis import given
from hypothesis import strategies as st

from secateur.compress.slimmable.costs import Costing, figures, joined
from secateur.compress.slimmable.monotone import isotonic, repaired
from secateur.compress.slimmable.search import Predictor, choose_rows
from secateur.compress.slimmable.tabulate import Judge, tabulate
from secateur.core.elastic import Chooser, Table, Wish
from secateur.core.predict import evaluate
from secateur.profiles.count import count

SMALL = replace(FAST, epochs=0, widths=(0.5,), exported=3, recalibration_batches=2)


@pytest.fixture(scope="module")
def judged() -> tuple[Judge, Table]:
    found = workload()
    judge = Judge(elastic(found, SMALL), found, SMALL, 0)
    return judge, tabulate(judge, SMALL, 0)


def test_metrics_of_the_table_are_those_of_the_static_model(judged) -> None:
    """Decoders were evaluated together at equal widths; any mixture has the same metrics."""
    judge, table = judged
    for row, chosen in ((1, {"quadrant": 0, "brightness": 1}), (2, {"quadrant": 1, "brightness": 0})):
        at = table.configuration(row, chosen)
        model = judge.elastic.static(at, judge.statistics(at))
        found = evaluate(model, judge.workload.calibration, judge.workload.tasks)
        for task, value in found.items():
            assert table.metrics[task][row, chosen[task]] == pytest.approx(value, rel=1e-5)


def test_costs_of_the_table_are_those_of_cut_models(judged) -> None:
    judge, table = judged
    chooser = Chooser(table)
    for row, (a, b) in itertools.product(range(4), itertools.product(range(2), repeat=2)):
        choice = chooser.choice(row, {"quadrant": a, "brightness": b})
        static = judge.elastic.static(choice.configuration)
        costs = count(static, judge.workload.example_input, judge.workload.task_names).costs
        assert choice.costs["flops"] == costs.flops
        assert choice.costs["params"] == costs.params
        assert choice.costs["size"] == costs.size_bytes
        assert choice.costs["memory"] == pytest.approx(costs.peak_memory_bytes, rel=1e-6)


def test_a_decoders_part_is_what_the_counter_calls_its_own(judged) -> None:
    judge, _ = judged
    space = judge.space
    parts = Costing(space).parts(space.largest)
    table = count(judge.workload.model, judge.workload.example_input, judge.workload.task_names)
    for task, cost in table.tasks.items():
        assert parts[task]["flops"] == cost.flops_exclusive


def test_the_margin_covers_every_configuration(judged) -> None:
    judge, table = judged
    found, margin = figures(judge.space, Costing(judge.space), table.rows.tolist(), {
        task: rows.tolist() for task, rows in table.decoders.items()
    })  # fmt: skip
    assert margin == table.memory_margin >= 1
    assert (found["activations"].decoders["quadrant"] > 0).all()


def test_exported_rows_hold_the_smallest_and_the_largest(judged) -> None:
    _, table = judged
    flops = table.costs["flops"]
    total = flops.shared + sum(each.min(1) for each in flops.decoders.values())
    assert {int(total.argmin()), int(flops.shared.argmax())} <= set(table.exported)
    assert len(table.exported) <= 3
    picked = Chooser(table, rows=table.exported).pick(Wish({"flops": float(total.min())}))
    assert picked.met


def test_where_rows_are_too_many_all_of_the_table_is_still_evaluated() -> None:
    found = workload()
    settings = replace(SMALL, widths=(0.25, 0.5, 0.75), rows=7)
    judge = Judge(elastic(found, settings), found, settings, 0)
    table = tabulate(judge, settings, 0)
    assert len(table.rows) == 7 == len({tuple(row) for row in table.rows.tolist()})
    assert table.notes["rows"] == "evolved"
    assert table.notes["of"] == 16
    assert len(table.notes["predictor_error"]) == 2
    at = joined(judge.space, table.rows[6].tolist(), {"quadrant": [2], "brightness": [2]})
    assert table.metrics["quadrant"][6, 2] == judge.metrics(at)["quadrant"]


def test_the_search_finds_what_is_best_within_budgets() -> None:
    """A smooth quality of five stages: over budgets, the found rows come within 2 % of the best of all 1,024."""
    sizes = (4,) * 5
    gain, price = np.array([1.0, 3.0, 0.5, 2.0, 1.0]), np.array([4.0, 1.0, 2.0, 3.0, 1.0])

    def quality(row) -> np.ndarray:
        x = np.array(row) / 3
        return np.array([gain @ (x * (2 - x)), gain[::-1] @ (x * (2 - x))])

    def flops(row) -> float:
        return float(1 + price @ np.square(1 + np.array(row)))

    rows, notes = choose_rows(sizes, 64, quality, flops, np.random.default_rng(0), [(i,) * 5 for i in range(4)])
    everything = list(itertools.product(range(4), repeat=5))
    assert len(rows) == 64
    assert notes["of"] == 1024
    assert min(notes["predictor_correlation"]) > 0.9

    def reached(among) -> np.ndarray:
        budgets = np.geomspace(40, flops((3,) * 5), 12)
        return np.array([max(quality(row).min() for row in among if flops(row) <= budget) for budget in budgets])

    drawn = [tuple(row) for row in np.random.default_rng(1).integers(4, size=(64, 5))]
    ratio = reached(rows) / reached(everything)
    assert ratio.mean() >= 0.985
    assert ratio.min() >= 0.95
    assert ratio.mean() > (reached(drawn) / reached(everything)).mean() + 0.03


def test_the_stated_error_of_the_predictor_is_that_of_left_out_rows() -> None:
    """By hand: leave each row out, fit again, predict it. (PRESS with the ridge term scaled for the count.)"""
    draw = np.random.default_rng(0)
    x, noise = draw.uniform(size=(40, 2)), 0.1 * draw.standard_normal((40, 1))
    y = x[:, :1] ** 2 - x[:, 1:] + noise
    left_out = [Predictor.fit(np.delete(x, i, 0), np.delete(y, i, 0)).predict(x[i : i + 1])[0, 0] for i in range(40)]
    by_hand = np.sqrt(np.square(np.array(left_out) - y[:, 0]).mean())
    assert Predictor.fit(x, y).error[0] == pytest.approx(by_hand, rel=0.05)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_isotonic_regression_is_the_nearest_monotone_sequence(values: list[float]) -> None:
    """Its conditions: non-decreasing, block means, and no step between blocks can be improved (Barlow et al.)."""
    y = np.array(values)
    fit = isotonic(y)
    assert (np.diff(fit) >= -1e-9).all()
    assert fit.sum() == pytest.approx(y.sum(), abs=1e-6)
    assert (np.cumsum(y - fit) >= -1e-6).all()
    assert float((y - fit) @ fit) == pytest.approx(0, abs=1e-5)


def test_a_repaired_table_is_monotone_along_every_width_and_counts_what_was_not() -> None:
    draw = np.random.default_rng(1)
    coordinates = np.array(list(itertools.product(range(3), repeat=2)))
    values = coordinates.sum(1) + draw.normal(0, 0.8, 9)
    fitted, violations, pairs = repaired(values, coordinates, increasing=True)
    grid = fitted.reshape(3, 3)
    assert pairs == 12
    assert violations == (np.diff(values.reshape(3, 3), axis=0) < 0).sum() + (np.diff(values.reshape(3, 3)) < 0).sum()
    assert violations > 0
    assert (np.diff(grid, axis=0) >= -0.02).all()
    assert (np.diff(grid, axis=1) >= -1e-9).all()
    falling, _, _ = repaired(-values, coordinates, increasing=False)
    np.testing.assert_allclose(falling, -fitted)
