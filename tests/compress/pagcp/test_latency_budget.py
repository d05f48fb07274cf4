"""Budgets on latency and energy: predicted, pruned at the device's own counts, corrected by what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from stairs import LANES, START, Stairs, hardware
from torch import nn

from secateur.compress.compressed import Compressed
from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.pagcp import prune
from secateur.compress.pagcp.hardware import Checked, Loop, corrected, corrections, device_counts
from secateur.compress.pagcp.schedule import order
from secateur.compress.pagcp.target import Target
from secateur.core.budget import Budget, Tolerance
from secateur.core.costs import Costs, Latency, Profile
from secateur.core.errors import BudgetError, OutputError
from secateur.core.task import Workload
from secateur.profiles.graph import capture
from secateur.profiles.latency.traced import read_graph
from secateur.targets.hardware import Hardware
from secateur.verbs.hardware import judged
from secateur.verbs.select import select

QUICK = replace(tiny.FAST, rounds=1, epochs=0, max_passes=20, local_tolerance=0.5)


def pruned(squares: Workload, budget: str, loop: Loop | None, **options: object) -> Compressed:
    options = {"tolerance": Tolerance.parse("95%"), "settings": QUICK, **options}
    return prune(squares, Budget.parse(budget), loop=loop, **options)  # type: ignore[arg-type]


def predicted(model: nn.Module, squares: Workload, found: Hardware, kind: str = "latency") -> float:
    return found.figure(kind, [step.operator() for step in read_graph(capture(model, squares.example_input))])


class FakeCheck:
    """A target on which everything takes `factor` times what is predicted, but for the original."""

    def __init__(self, squares: Workload, factor: float, source: str = "measured") -> None:
        self.squares, self.factor, self.source, self.calls = squares, factor, source, 0

    def __call__(self, model: nn.Module) -> Checked:
        self.calls += 1
        ms, before = (predicted(each, self.squares, hardware()) for each in (model, self.squares.model))
        return Checked({"latency": (self.factor * ms, before)}, self.source)  # type: ignore[arg-type]


def test_a_saving_is_the_difference_of_two_predictions(squares: Workload) -> None:
    costs, found, draw = CostModel(trace(squares.model, squares.example_input)), hardware(), np.random.default_rng(0)
    whole = found.figure("latency", costs.operators(costs.widths({})))
    before = Costs(1, 1, 1, 1, predicted_ms=whole)
    target = Target(Budget.parse("latency<=1%").limits, before, costs, found)
    for _ in range(20):
        small = np.array([draw.integers(1, channels + 1) for channels in costs.full], dtype=float)
        smaller = np.array([draw.integers(1, channels + 1) for channels in small], dtype=float)
        model = Stairs()
        one, other = (model.predict(costs.operators(widths)).ms for widths in (small, smaller))
        assert target.saving(small, smaller) == pytest.approx((one - other) / whole, abs=1e-12)
        assert target.gap(small) == pytest.approx(one / whole - 0.01)


def test_the_counts_of_a_device_are_the_last_before_its_time_jumps(squares: Workload) -> None:
    groups = trace(squares.model, squares.example_input)
    counts = device_counts(CostModel(groups), hardware())
    convolved = [name for name, found in counts.items() if groups[name].channels > LANES]
    assert len(convolved) >= 4
    for name in convolved:
        channels = groups[name].channels
        assert counts[name] == [count for count in range(1, channels) if count % LANES == 0]
    assert not any(name.startswith("brightness") for name in counts)  # linear layers cost this device nothing


def test_candidates_are_the_devices_counts_and_the_prediction_meets_the_budget(squares: Workload) -> None:
    result, found = pruned(squares, "latency<=50%", Loop(hardware())), hardware()
    assert not any("latency" in miss for miss in result.misses), result.misses
    counts = device_counts(CostModel(trace(squares.model, squares.example_input)), found)
    tried = [(each["group"], trial["kept"]) for each in result.history["decisions"] for trial in each["curve"]]
    assert tried
    for name, kept in tried:
        assert name not in counts or kept in counts[name] or kept < counts[name][0]
    reached, before = (predicted(model, squares, found) for model in (result.model, squares.model))
    assert result.costs.predicted_ms == pytest.approx(reached)
    assert result.costs_before.predicted_ms == pytest.approx(before)
    assert reached <= 0.5 * before


@pytest.mark.parametrize(
    "budget", ["latency<=0.06ms,flops<=60%", "energy<=50%", "latency<=60%,energy<=60%,params<=70%"]
)
def test_limits_of_all_kinds_hold_together(squares: Workload, budget: str) -> None:
    limits = Budget.parse(budget)
    loop = Loop(hardware(*(limit.kind for limit in limits.on_target.limits)))
    result = pruned(squares, budget, loop)
    assert limits.misses(result.costs, result.costs_before) == []
    if limits.of("energy"):
        assert result.costs.predicted_mj == pytest.approx(predicted(result.model, squares, loop.hardware, "energy"))


def test_groups_go_in_the_order_of_what_they_save_for_what_they_cost() -> None:
    savings, rises = {"a": 4.0, "b": 2.0, "c": 1.0}, {"a": 0.4, "b": 0.1, "c": -0.5}
    assert order(savings, 0.9) == ["a", "b", "c"]
    assert order(savings, 0.9, rises) == ["c", "b", "a"]  # 1 / least rise, 20, 10
    assert order(savings, 1.1, rises) == ["a", "b", "c"]


def test_a_limit_on_flops_alone_is_pruned_to_as_without_a_target(squares: Workload) -> None:
    one, other = (pruned(squares, "flops<=60%", loop) for loop in (None, Loop(hardware())))
    assert one.history == other.history
    assert one.costs == other.costs
    assert other.on_target is None


@pytest.mark.parametrize(("budget", "factor"), [("latency<=60%", 1.3), ("latency<=0.08ms", 1.2)])
def test_a_wrong_prediction_is_corrected_in_the_same_run(squares: Workload, budget: str, factor: float) -> None:
    check = FakeCheck(squares, factor)
    result = pruned(squares, budget, Loop(hardware(), check))
    assert check.calls == 2
    assert result.on_target is not None
    assert result.on_target.corrections == {"latency": pytest.approx(factor)}
    reached, before = result.on_target.figures["latency"]
    assert reached <= Budget.parse(budget).limits[0].absolute(before)
    assert reached == pytest.approx(factor * predicted(result.model, squares, hardware()))
    assert not any("latency" in miss for miss in result.misses)
    assert {each["round"] for each in result.history["decisions"]} == {0}
    passes = [(each["round"], each["pass"]) for each in result.history["sequences"]]
    assert len(set(passes)) == len(passes)
    kept = {each["group"]: each["kept"] for each in result.history["decisions"]}
    for group in trace(result.model, squares.example_input).prunable:
        assert kept.get(group.name, group.channels) == group.channels  # the last decision says what is left


def test_a_right_prediction_needs_no_correction_and_a_hopeless_one_is_tried_once(squares: Workload) -> None:
    right, never = FakeCheck(squares, 0.9), FakeCheck(squares, 50.0)
    assert pruned(squares, "latency<=60%", Loop(hardware(), right)).on_target.corrections == {}  # type: ignore[union-attr]
    assert right.calls == 1
    result = pruned(squares, "latency<=90%", Loop(hardware(), never), settings=replace(QUICK, max_passes=4))
    assert never.calls == 2
    assert any(miss.startswith("latency<=90%: reached") for miss in result.misses)


def test_corrections_scale_the_limit_by_what_was_measured_over_what_was_predicted() -> None:
    asked, before = Budget.parse("latency<=5ms,flops<=50%"), Costs(100, 1, 1, 1, predicted_ms=10.0)
    costs, measured = Costs(40, 1, 1, 1, predicted_ms=4.8), Checked({"latency": (6.0, 12.0)}, "measured")
    assert corrections(asked, costs, before, measured) == {"latency": pytest.approx(1.25)}
    (limit, other) = corrected(asked, {"latency": 1.25}, "measured")
    assert limit.value == pytest.approx(5 * 0.98 / 1.25)
    assert other == asked.limits[1]
    share = Budget.parse("latency<=48%")
    assert corrections(share, costs, before, measured) == {"latency": pytest.approx(0.5 / 0.48)}
    assert corrections(share, replace(costs, predicted_ms=4.9), before, measured) == {}  # was not met by prediction


def test_a_stopped_run_continues_to_the_same_result(squares: Workload, tmp_path: Path) -> None:
    class Stopping(FakeCheck):
        def __call__(self, model: nn.Module) -> Checked:
            found = super().__call__(model)
            if self.calls == self.stop:
                raise KeyboardInterrupt
            return found

    whole = pruned(squares, "latency<=60%", Loop(hardware(), FakeCheck(squares, 1.3)))
    for stop in (1, 2):
        check = Stopping(squares, 1.3)
        check.stop, state = stop, tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            pruned(squares, "latency<=60%", Loop(hardware(), check), state=state)
        check.stop = 0
        resumed = pruned(squares, "latency<=60%", Loop(hardware(), check), state=state, resume=True)
        assert resumed.history == whole.history
        assert resumed.on_target == whole.on_target
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_run_does_not_continue_with_another_calibration(squares: Workload, tmp_path: Path) -> None:
    class Slower(Stairs):
        def whole(self, parts_ms: float) -> float:
            return 2 * START + parts_ms

    pruned(squares, "latency<=80%", Loop(hardware()), state=tmp_path / "state")
    other = hardware()
    assert other.table is not None
    other.table.model = Slower()
    with pytest.raises(OutputError, match="had another target"):
        pruned(squares, "latency<=80%", Loop(other), state=tmp_path / "state", resume=True)


def test_a_front_of_latencies_holds_at_every_point(squares: Workload) -> None:
    settings = replace(QUICK, front=(0.8, 0.6))
    result = pruned(squares, "latency<=45%", Loop(hardware(), FakeCheck(squares, 1.15)), settings=settings)
    whole = predicted(squares.model, squares, hardware())
    shares = [1.15 * predicted(point.model, squares, hardware()) / whole for point in result.points]
    assert all(share <= asked for share, asked in zip(shares, (0.8, 0.6, 0.45), strict=True)), shares


def test_without_a_target_a_limit_on_one_is_refused(squares: Workload) -> None:
    with pytest.raises(BudgetError, match="limit on a target"):
        pruned(squares, "latency<=8ms", None)


def profile(ms: float, source: str = "measured") -> Profile:
    return Profile("mobile:raspberry-pi-5", "", source, Latency(ms, ms, ms))  # type: ignore[arg-type]


def test_the_last_word_is_the_final_measurement(squares: Workload, tmp_path: Path) -> None:
    result = pruned(squares, "latency<=60%", Loop(hardware(), FakeCheck(squares, 1.0)))
    manifest = replace(result, misses=["depth: -9%", "latency<=60%: reached 61%"]).save(tmp_path / "bundle").manifest
    good = judged(manifest, [{"original": profile(10.0), "0": profile(5.9)}])
    assert good.misses == ["depth: -9%"]
    assert good.on_target is not None
    assert good.on_target.figures == {"latency": (5.9, 10.0)}
    late = judged(manifest, [{"original": profile(10.0), "0": profile(6.1)}])
    assert late.misses == ["depth: -9%", "latency<=60%: reached 61.0%, measured on mobile:raspberry-pi-5"]
    assert not late.budget_met
    elsewhere = replace(profile(9.0), target="cpu")
    assert judged(manifest, [{"original": elsewhere, "0": elsewhere}]) == manifest


def test_select_takes_limits_on_energy_of_a_predicted_target(squares: Workload, tmp_path: Path) -> None:
    settings = replace(QUICK, front=(0.7,))
    bundle = pruned(squares, "energy<=50%", Loop(hardware("energy")), settings=settings).save(tmp_path / "bundle")
    found = select(bundle, "energy<=60%", target="mobile:raspberry-pi-5", workload=squares)
    assert found.point == 1
    with pytest.raises(BudgetError, match="needs a target"):
        select(bundle, "energy<=60%", target="cpu", workload=squares)
