"""measure_onnx takes any ONNX file: other people's, quantised, with several inputs, and broken ones."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from secateur.core.errors import ExportError
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.profiles.timing import LEAST_ROUNDS
from secateur.targets.cpu import measure_onnx
from secateur.workloads.metrics import Accuracy

FAST = {"warmup_s": 0.0, "limit_s": 0.05}


def foreign(path: Path, shape: list[int | str], batch_out: int | str = "N", width: int = 8) -> Path:
    """A file as another exporter writes it: numbered weights, node names with slashes, an index input."""
    weight = numpy_helper.from_array(np.ones((width, 3, 3, 3), np.float32), "onnx::Conv_12")
    table = numpy_helper.from_array(np.ones((4, 5), np.float32), "table")
    nodes = [
        helper.make_node("Conv", ["image", "onnx::Conv_12"], ["c"], "/stem/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "/stem/Relu"),
        helper.make_node("Gather", ["table", "index"], ["g"], "/table/Gather"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("index", TensorProto.INT64, [2]),
        ],
        [
            helper.make_tensor_value_info("r", TensorProto.FLOAT, [batch_out, width, None, None]),
            helper.make_tensor_value_info("g", TensorProto.FLOAT, [2, 5]),
        ],
        [weight, table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU())
        self.skip = nn.Conv2d(3, 9, 3)
        self.heads = nn.ModuleDict({"a": nn.Linear(9, 4), "b": nn.Linear(9, 2)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = torch.relu(self.encoder(x) + self.skip(x)).mean((2, 3))
        return {name: head(pooled) for name, head in self.heads.items()}


def test_any_file_is_measured(tmp_path: Path) -> None:
    path = foreign(tmp_path / "foreign.onnx", ["N", 3, 32, 32])
    profile = measure_onnx({"foreign": path}, threads=1, **FAST)["foreign"]
    assert profile.source == "measured"
    assert profile.backend.startswith("onnxruntime ")
    assert "threads 1, batch 1" in profile.backend
    assert profile.latency is not None
    assert 0 < profile.latency.p10 <= profile.latency.median <= profile.latency.p90
    assert profile.latency.repeats >= LEAST_ROUNDS
    assert profile.params == 8 * 3 * 3 * 3 + 4 * 5
    assert profile.flops is None
    assert profile.layers == ()


def test_files_are_compared_in_the_same_rounds(tmp_path: Path) -> None:
    """A hundred times the work must come out slower on any machine."""
    large = foreign(tmp_path / "large.onnx", ["N", 3, 96, 96], width=64)
    small = foreign(tmp_path / "small.onnx", ["N", 3, 24, 24])
    profiles = measure_onnx({"large": large, "small": small}, against="large", limit_s=0.3)
    assert profiles["large"].speedup_against is None
    assert profiles["small"].speedup_against is not None
    assert profiles["small"].speedup_against > 2
    repeats = {profile.latency.repeats for profile in profiles.values() if profile.latency}
    assert len(repeats) == 1


def test_layers_carry_module_paths(tmp_path: Path) -> None:
    model = TwoHeads().eval()
    tasks = tuple(Task(name, nn.functional.mse_loss, Accuracy(), "higher") for name in "ab")
    workload = Workload("two", model, torch.randn(1, 3, 16, 16), tasks, [], [], [])
    path = to_onnx(model, workload, tmp_path / "model.onnx")
    profile = measure_onnx({"model": path}, layers=True, **FAST)["model"]
    kinds = {layer.name: layer.kind.removeprefix("Fused") for layer in profile.layers}
    assert kinds.items() >= {"encoder.0": "Conv", "skip": "Conv", "heads.a": "Gemm", "heads.b": "Gemm"}.items()
    assert all(layer.latency_ms is not None and layer.latency_ms >= 0 for layer in profile.layers)
    assert profile.params == sum(weight.numel() for weight in model.parameters()) - 2 * 9, "the batch norm is folded"


def test_layers_of_a_foreign_file_carry_its_node_names(tmp_path: Path) -> None:
    path = foreign(tmp_path / "foreign.onnx", ["N", 3, 32, 32])
    layers = measure_onnx({"foreign": path}, layers=True, **FAST)["foreign"].layers
    assert {"/stem/Conv", "/table/Gather"} <= {layer.name for layer in layers}


def test_batch_fills_the_open_first_dimension(tmp_path: Path) -> None:
    open_ = foreign(tmp_path / "open.onnx", ["N", 3, 8, 8])
    fixed = foreign(tmp_path / "fixed.onnx", [2, 3, 8, 8], batch_out=2)
    assert "batch 4" in measure_onnx({"open": open_}, batch=4, **FAST)["open"].backend
    with pytest.raises(ExportError, match="fixes its batch size"):
        measure_onnx({"fixed": fixed}, batch=4, **FAST)


def test_other_open_dimensions_are_asked_for(tmp_path: Path) -> None:
    path = foreign(tmp_path / "open.onnx", ["N", 3, "H", "W"])
    with pytest.raises(ExportError, match="image has open dimensions") as caught:
        measure_onnx({"open": path}, **FAST)
    assert "[1, 3, 1, 1]" in caught.value.hint
    assert measure_onnx({"open": path}, shapes={"image": (1, 3, 8, 8)}, **FAST)["open"].latency
    with pytest.raises(ExportError, match="no input picture"):
        measure_onnx({"open": path}, shapes={"picture": (1, 3, 8, 8)}, **FAST)
    with pytest.raises(ExportError, match="does not run") as caught:
        measure_onnx({"open": path}, shapes={"image": (1, 4, 8, 8)}, **FAST)
    assert "\n" not in caught.value.message


def test_an_input_type_without_values(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["out"])],
        "g",
        [helper.make_tensor_value_info("text", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("out", TensorProto.STRING, [1])],
    )
    path = tmp_path / "text.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ExportError, match="string"):
        measure_onnx({"text": path}, **FAST)


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_one_clear_line(share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = foreign(tmp_path / "whole.onnx", ["N", 3, 8, 8]).read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ExportError) as caught:
        measure_onnx({"cut": cut}, **FAST)
    assert str(cut) in caught.value.message
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_the_folder_of_the_user_stays_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = foreign(tmp_path / "foreign.onnx", ["N", 3, 8, 8])
    measure_onnx({"foreign": path}, layers=True, **FAST)
    assert list(tmp_path.iterdir()) == [path]


def test_any_damage_is_an_export_error_or_harmless(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = foreign(tmp_path / "whole.onnx", ["N", 3, 8, 8]).read_bytes()
    draw = random.Random(0)
    refused = []
    for _ in range(150):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] = draw.randrange(256)
        path = tmp_path / "damaged.onnx"
        path.write_bytes(damaged)
        try:
            measure_onnx({"damaged": path}, layers=True, warmup_s=0, limit_s=0, precision=1e9)
        except ExportError as error:
            refused.append(error.message)
    assert len(refused) > 20
    assert not any("\n" in message for message in refused)
    assert capfd.readouterr() == ("", "")
