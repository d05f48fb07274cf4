"""An extraction on an accelerator that works expert by expert: predicted from the routing of the test split."""

from __future__ import annotations

from pathlib import Path

import pytest
from moe_models import TASKS, workload
from torch import Tensor, nn

import secateur as sc
from secateur.compress.experts import Settings, extract
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle
from secateur.core.errors import DeviceError
from secateur.targets.device import get
from secateur.targets.edge_moe import board
from secateur.targets.registry import device_status

TARGET = "fpga:edge-moe"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Depth alone, exactly and with half of the experts."""
    small = extract(
        workload(), ["depth"], Budget.parse("params<=59%"), Tolerance.parse("90%"), Settings(epochs=0, rounds=1)
    )
    return small.save(tmp_path_factory.mktemp("bundles") / "depth")


def test_every_task_has_its_row_with_and_without_reordering() -> None:
    (profile,) = sc.benchmark(workload(), TARGET).profiles
    assert (profile.source, profile.error_pct) == ("predicted", board("zcu102").error_pct)
    tasks = profile.details["tasks"]
    assert tuple(tasks) == TASKS
    for figures in tasks.values():
        loose = figures["token_by_token"]
        assert loose["macs"] == figures["macs"]
        assert loose["expert_weight_bytes"] > figures["expert_weight_bytes"]
        assert loose["latency_ms"] >= figures["latency_ms"]
        assert figures["experts_loaded"] <= 12  # two mixtures of six
    assert profile.details["samples"] == 12
    assert profile.details["switching_ms"] <= 0  # another task loads nothing that it would not load alone
    assert profile.latency.median <= sum(figures["latency_ms"] for figures in tasks.values()) * 1.01  # type: ignore[union-attr]


def test_layers_add_up_to_the_whole() -> None:
    (profile,) = sc.benchmark(workload(), TARGET, per_layer=True).profiles
    total = sum(figures["latency_ms"] for figures in profile.details["tasks"].values())
    assert sum(layer.latency_ms for layer in profile.layers) == pytest.approx(total)  # type: ignore[misc]
    assert {layer.name for layer in profile.layers if layer.kind == "experts"} == {"blocks.1.mlp", "blocks.3.mlp"}


def test_a_bundle_loads_fewer_bytes_than_its_original(bundle: Bundle) -> None:
    found = sc.benchmark(bundle, TARGET, workload=workload())
    small, whole = found.profiles[0].details["tasks"]["depth"], found.profiles_against[0].details["tasks"]["depth"]
    assert small["expert_weight_bytes"] < whole["expert_weight_bytes"]
    assert small["macs"] == whole["macs"]  # each token goes through as many experts
    chip, before = found.profiles[0].details["on_chip"], found.profiles_against[0].details["on_chip"]
    assert chip["bytes_with_resident_experts"] < before["bytes_with_resident_experts"]
    assert chip["fits"]


def test_a_point_is_selected_by_its_predicted_latency(bundle: Bundle) -> None:
    chosen = sc.select(bundle, "latency<=10s", target=TARGET, workload=workload())
    assert chosen.predicted
    assert chosen.latency_ms > 0


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {task: self.conv(x) for task in TASKS}


def test_what_has_no_experts_or_no_routing_is_refused_in_one_line(tmp_path: Path) -> None:
    assert device_status(get(TARGET)).status == "predicted"
    with pytest.raises(DeviceError, match=r"works expert by expert, and tiny has no expert layers"):
        sc.benchmark(workload(Plain()), TARGET)
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(DeviceError, match=r"predicted from a workload's routing, which .*model.onnx does not hold"):
        sc.benchmark(path, TARGET)
