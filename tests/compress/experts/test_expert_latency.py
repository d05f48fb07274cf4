"""Budgets on latency for experts: fewer experts are fewer operators; what the target contradicts is corrected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from moe_models import TASKS, m3vit, workload
from torch import nn

import secateur as sc
from secateur.compress import pagcp
from secateur.compress.compressed import Compressed
from secateur.compress.experts import Settings, extract, find
from secateur.compress.experts.compose import then_prune
from secateur.compress.pagcp.hardware import Checked, Loop
from secateur.core.budget import Budget, Tolerance
from secateur.core.errors import BudgetError, DeviceError, OutputError
from secateur.profiles.count import count
from secateur.profiles.graph import capture_tasks
from secateur.profiles.latency import Estimate, Operator
from secateur.profiles.latency.table import LatencyTable
from secateur.profiles.latency.traced import operators_of, read_graph
from secateur.targets.device import get
from secateur.targets.hardware import Hardware

LOOSE, QUICK = Tolerance.parse("95%"), Settings(epochs=0, rounds=1, passes=8)


class Clock:
    """A device that takes a millisecond for each operator, and one for each ten thousand multiplications."""

    def layers(self, operators: Sequence[Operator]) -> list[float]:
        return [1 + each.macs / 1e4 for each in operators]

    parts = layers

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        ms = self.whole(sum(self.layers(operators)))
        return Estimate(ms, ms, ms, 0.0, {})

    def whole(self, parts_ms: float) -> float:
        return parts_ms


HARDWARE = Hardware(get("mobile:raspberry-pi-5"), ("latency",), "a clock", LatencyTable(Clock()))


def predicted(model: nn.Module) -> float:
    """Milliseconds for depth."""
    graphs = capture_tasks(model, workload().example_input, ("depth",))
    return HARDWARE.figure("latency", operators_of(step for graph in graphs for step in read_graph(graph)))


class Slower:
    """A target on which compressed models take `factor` times what is predicted, and the original what is."""

    def __init__(self, factor: float) -> None:
        self.factor, self.experts = factor, list[int]()

    def __call__(self, model: nn.Module) -> Checked:
        self.experts.append(experts(model))
        return Checked({"latency": (self.factor * predicted(model), predicted(m3vit()))}, "measured")


def extracted(budget: str, loop: Loop | None, **options: object) -> Compressed:
    return extract(workload(), ["depth"], Budget.parse(budget), LOOSE, QUICK, loop=loop, **options)  # type: ignore[arg-type]


def experts(model: nn.Module) -> int:
    return sum(layer.experts for layer in find(model))


def share(found: Compressed, point: int = -1) -> float:
    before, after = found.costs_before.predicted_ms, found.points[point].costs.predicted_ms
    assert before is not None
    assert after is not None
    return after / before


@pytest.fixture(scope="module")
def plain() -> Compressed:
    """Depth to 60 % of the latency of the whole model, as predicted."""
    return extracted("latency<=60%", Loop(HARDWARE))


def test_experts_go_until_the_predicted_latency_is_met(plain: Compressed) -> None:
    assert plain.budget_met
    assert share(plain) <= 0.6 < share(plain, 0)
    assert experts(plain.model) < experts(plain.points[0].model)
    assert plain.on_target is not None
    assert (plain.on_target.basis, plain.on_target.source, plain.on_target.corrections) == ("a clock", "predicted", {})


def test_the_latency_is_that_of_the_kept_tasks(plain: Compressed) -> None:
    assert plain.costs_before.flops == count(m3vit(), workload().example_input, TASKS).costs.flops
    assert plain.costs_before.predicted_ms == pytest.approx(predicted(m3vit()))
    assert plain.costs.predicted_ms == pytest.approx(predicted(plain.model))


def test_what_the_target_contradicts_is_corrected_in_the_same_run(plain: Compressed, tmp_path: Path) -> None:
    check, state = Slower(1.15), tmp_path / "state"
    found = extracted("latency<=60%", Loop(HARDWARE, check), state=state)
    assert check.experts == [experts(plain.model), experts(found.model)]
    assert experts(found.model) < experts(plain.model)
    assert found.on_target is not None
    assert found.on_target.corrections == {"latency": pytest.approx(1.15)}
    assert found.on_target.source == "measured"
    assert found.budget_met
    again = extracted("latency<=60%", Loop(HARDWARE, check), state=state, resume=True)
    assert len(check.experts) == 2  # the journal knew both answers
    assert again.history["experts"]["points"] == found.history["experts"]["points"]
    other = Hardware(get("mobile:raspberry-pi-4"), ("latency",), "a clock", LatencyTable(Clock()))
    with pytest.raises(OutputError, match="another target"):
        extracted("latency<=60%", Loop(other), state=state, resume=True)


def test_channels_go_too_where_experts_are_pruned() -> None:
    exact = extract(workload(), ["depth"], loop=Loop(HARDWARE))
    limit = Budget.parse("latency<=45%")
    settings = pagcp.Settings(epochs=0, rounds=2, local_tolerance=0.5, round_to=1)
    found = then_prune(exact, limit, LOOSE, settings, loop=Loop(HARDWARE))
    assert found.budget_met
    assert share(found) <= 0.45 < share(found, 0)
    assert share(found, 1) == pytest.approx((0.45 * share(found, 0)) ** 0.5, rel=0.12)  # half of the way, geometrically
    assert found.on_target is not None
    records = found.history["experts"]["points"]
    assert [sum(map(len, one["kept"].values())) for one in records] == [experts(each.model) for each in found.points]
    rates = [max(one["miss_rate"]["depth"].values()) for one in records]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0], "experts went, and tokens wanted them"


def test_a_latency_needs_a_target_that_predicts_it() -> None:
    with pytest.raises(BudgetError, match=r"latency<=60% is a limit on a target, and none is given"):
        extracted("latency<=60%", None)
    with pytest.raises(DeviceError, match="routing of a whole workload"):
        sc.extract(workload(m3vit()), "depth", "latency<=60%", target="fpga:edge-moe")
