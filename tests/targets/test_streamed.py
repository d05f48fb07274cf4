"""A design with hardware for every layer: its latency by hand, and what is said of models that it cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import TinyViT, make_workload
from torch import Tensor, nn
from toy_metrics import AbsoluteError

from secateur.core.errors import DeviceError, ExportError
from secateur.core.task import Task, Workload
from secateur.export.hls_graph import prepare
from secateur.export.hls_resources import Design, Resources, latency_cycles, layers_of
from secateur.targets.device import get
from secateur.verbs.measure import Subject, measure


class Dense(nn.Module):
    """Two convolutions of 8 × 8 pixels, and a dense layer that waits for all of them."""

    tasks = ("out",)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.dense = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.dense(torch.flatten(self.point(torch.relu(self.wide(x))), 1))}


OUT = Task("out", nn.functional.l1_loss, AbsoluteError(), "lower")


def dense() -> Workload:
    return Workload("dense", Dense().eval(), torch.zeros(1, 3, 8, 8), [OUT], [], [], [])


def test_latency_by_hand() -> None:
    """Pixels come one a cycle, 64 in all. The first convolution waits for one line of eight, its 64 pixels take two
    cycles each: done at 8 + 128. The second keeps up with it; the dense layer starts when it is done and takes five."""
    prepared = prepare(dense().model, dense())
    wide, point, last = (layer.name for layer in layers_of(prepared))
    design = Design({wide: 2, point: 1, last: 5}, Resources(0, 0, 0, 0), 128)
    assert latency_cycles(prepared, design) == 8 + 128 + 5


def test_a_workload_is_predicted_with_the_pace_and_what_it_takes(tmp_path: Path) -> None:
    subjects = {"it": Subject(tmp_path / "none.onnx", workload=dense)}
    found = measure(subjects, get("fpga:hls"))["it"]
    assert (found.source, found.basis) == ("predicted", "streamed")
    assert found.latency is not None
    assert found.latency.median >= found.details["interval_ms"] > 0
    assert 0 < found.details["resources"]["dsp"] <= found.details["limits"]["dsp"]


def test_files_and_what_the_design_cannot_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="model's modules"):
        measure({"file": Subject(tmp_path / "any.onnx")}, get("fpga:hls"))
    vit = Subject(tmp_path / "any.onnx", workload=lambda: make_workload(TinyViT().eval()))
    with pytest.raises(ExportError, match="hls4ml cannot take this model"):
        measure({"vit": vit}, get("fpga:hls"))
