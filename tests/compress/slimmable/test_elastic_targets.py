"""Elastic models on targets that are not here: predicted part by part, the same as the whole model is predicted."""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elastic_tiny import FAST, elastic, workload

from secateur.compress.slimmable.costs import Costing, parts_of
from secateur.compress.slimmable.tabulate import Judge, tabulate
from secateur.core.elastic import Chooser, Table, Wish
from secateur.core.errors import BundleError, DeviceError
from secateur.export.onnx import to_onnx
from secateur.profiles.latency.parts import Parts
from secateur.targets.device import get
from secateur.targets.elastic_predicted import with_predictions
from secateur.targets.hardware import hardware_of
from secateur.targets.predict import predict_onnx
from secateur.targets.registry import TargetStatus
from secateur.verbs.slim import predicted_on

SMALL = replace(FAST, epochs=0, widths=(0.5,), exported=3, recalibration_batches=2)
TARGETS = ("fpga:zcu102", "mobile:raspberry-pi-5", "gpu:rtx-4090")


@pytest.fixture(scope="module")
def made() -> tuple[Judge, Table, Parts]:
    found = workload()
    judge = Judge(elastic(found, SMALL), found, SMALL, 0)
    table = tabulate(judge, SMALL, 0)
    decoders = {task: rows.tolist() for task, rows in table.decoders.items()}
    return judge, table, parts_of(judge.space, Costing(judge.space), table.rows.tolist(), decoders)


@pytest.mark.parametrize("target", TARGETS)
def test_the_sum_of_parts_is_the_prediction_of_the_whole(made, target: str) -> None:
    judge, table, parts = made
    device, costing = get(target), Costing(judge.space)
    kinds = ["latency"] if device.energy_per_mac is None else ["latency", "energy"]
    found, hardware = with_predictions(table, parts, device, ["latency"]), hardware_of(device, kinds)
    assert found.latency[target].source == "predicted"
    assert (target in found.energy) == ("energy" in kinds)
    chooser = Chooser(found, target=target)
    for row, (a, b) in itertools.product(range(4), itertools.product(range(2), repeat=2)):
        chosen = {"quadrant": a, "brightness": b}
        channels = judge.space.channels(table.configuration(row, chosen))
        operators = costing.model.operators(costing.model.widths(channels))
        for kind in kinds:
            assert chooser.choice(row, chosen).costs[kind] == pytest.approx(hardware.figure(kind, operators))


def test_the_prediction_is_that_of_the_exported_file(made, tmp_path: Path) -> None:
    judge, table, parts = made
    device = get("mobile:raspberry-pi-5")
    chosen = {"quadrant": 1, "brightness": 0}
    model = judge.elastic.static(table.configuration(2, chosen))
    profile = predict_onnx(device, to_onnx(model, judge.workload, tmp_path / "model.onnx"))
    found = with_predictions(table, parts, device, ["latency", "energy"])
    assert profile.latency is not None
    assert found.latency[device.name].figures.of(2, chosen) == pytest.approx(profile.latency.median, rel=0.02)
    assert found.energy[device.name].of(2, chosen) == pytest.approx(profile.energy_mj, rel=0.02)


def test_a_decoder_that_does_not_run_costs_what_its_operators_cost(made) -> None:
    """Latency of the roofline is a plain sum, so leaving out a decoder leaves out its layers."""
    _, table, parts = made
    device = get("gpu:rtx-4090")
    latency = with_predictions(table, parts, device, ["latency"]).latency[device.name].figures
    table_of = hardware_of(device, ["latency"]).table
    assert table_of is not None
    own = [parts.operators[number] for number in parts.decoders["quadrant"][3][1]]
    whole, without = latency.of(3, {"quadrant": 1, "brightness": 1}), latency.of(3, {"brightness": 1})
    assert whole - without == pytest.approx(sum(table_of.model.layers(own)))
    assert whole > without > 0


def test_what_a_model_does_not_add_up_is_exact_with_one_decoder(made) -> None:
    """Fetching weights costs only beyond what the caches hold: whole([1, w]) = ops + 3·max(0, w - 2000)."""
    _, _, parts = made
    each = [[1.0, float(operator.weights)] for operator in parts.operators]

    def whole(sums: np.ndarray) -> float:
        return float(sums[0] + 3 * max(0.0, sums[1] - 2000))

    figures = parts.figures(each, whole)
    assert max(sum(parts.operators[n].weights for n in numbers) for numbers in parts.shared) < 2000
    for row, d in itertools.product(range(4), range(2)):
        operators = parts.of(row, {"quadrant": d})
        by_hand = len(operators) + 3 * max(0.0, sum(operator.weights for operator in operators) - 2000)
        assert figures.of(row, {"quadrant": d}) == pytest.approx(by_hand)


def test_an_energy_budget_is_kept_and_survives_the_file(made) -> None:
    _, table, parts = made
    device = get("fpga:zcu102")
    found = with_predictions(table, parts, device, ["energy"])
    assert device.name not in found.latency
    again = Table.from_json(json.loads(json.dumps(found.as_json())))
    energy = again.energy[device.name]
    totals = [
        energy.of(row, {"quadrant": a, "brightness": b})
        for row, a, b in itertools.product(range(4), range(2), range(2))
    ]  # fmt: skip
    limit = float(np.median(totals))
    choice = Chooser(again, target=device.name).pick(Wish({"energy": limit}))
    assert choice.met
    assert choice.costs["energy"] <= limit < max(totals)
    assert not Chooser(again, target=device.name).pick(Wish({"energy": 0.5 * min(totals)})).met


def test_parts_survive_their_file(made) -> None:
    _, _, parts = made
    again = Parts.from_json(json.loads(json.dumps(parts.as_json())))
    assert again == parts
    assert len(set(again.operators)) == len(again.operators), "each distinct operator is kept once"


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("shared"),
        lambda d: d["shared"].append([10_000]),
        lambda d: d["decoders"]["quadrant"][0][0].append(-1),
        lambda d: d["operators"][0].pop(),
        lambda d: d.update(operators=7),
        lambda d: d["decoders"].update(quadrant="x"),
    ],
)
def test_damaged_parts_are_refused(made, damage) -> None:
    document = json.loads(json.dumps(made[2].as_json()))
    damage(document)
    with pytest.raises(BundleError, match="damaged"):
        Parts.from_json(document)


def test_what_cannot_be_predicted_is_told_and_left_out(made) -> None:
    """A file that runs here is not run in another target's name."""
    _, table, parts = made
    missing = TargetStatus("gpu", "gpu", "unavailable", "no GPU", "find one")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = predicted_on(table, [get("mobile:raspberry-pi-5"), get("fpga:edge-moe"), missing], parts)
    assert list(found.latency) == ["mobile:raspberry-pi-5"]
    assert [str(each.message).split(":")[0] for each in said] == ["no latencies of fpga", "no latencies of gpu"]
    with pytest.raises(DeviceError, match="tells no energy"):
        with_predictions(table, parts, get("gpu:rtx-4090"), ["energy"])
