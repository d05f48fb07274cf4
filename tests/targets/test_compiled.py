"""cpu:tvm takes any ONNX file and measures it in a process of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from secateur.core.errors import ExportError
from secateur.targets.compiled import measure_compiled
from secateur.targets.device import get
from secateur.verbs.measure import Subject, measure

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("tvm"), reason="needs secateur[tvm]")


def products(path: Path, count: int) -> Path:
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(count)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 256]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [256, 256], [0.01] * 256**2)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_any_file_is_measured_and_compared(tmp_path: Path) -> None:
    """Twelve times the products take longer on any machine."""
    files = {
        "long": Subject(products(tmp_path / "long.onnx", 12)),
        "short": Subject(products(tmp_path / "short.onnx", 1)),
    }
    device = get("cpu:tvm").model_copy(update={"settings": get("cpu:tvm").settings.model_copy(update={"batch": 64})})
    found = measure(files, device, against="long")
    assert found["long"].source == "measured"
    assert found["long"].target == "cpu:tvm"
    assert found["long"].backend.startswith("tvm ")
    assert "threads 1, batch 64" in found["long"].backend
    assert found["short"].speedup_against is not None
    assert found["short"].speedup_against > 2
    assert found["short"].params == 256**2


def test_no_model_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(products(tmp_path / "whole.onnx", 1).read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"cut\.onnx"):
        measure_compiled({"cut": path}, "tvm")
