"""ONNX Runtime's refusals, each with what to do about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from secateur.core.errors import ExportError
from secateur.export.onnx_session import open_session


def convolution(path: Path, kind: int, weight: np.ndarray) -> Path:
    values = [helper.make_tensor_value_info(name, kind, [1, *shape]) for name, shape in SHAPES.items()]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


SHAPES = {"x": [3, 8, 8], "y": [2, 6, 6]}


def test_a_number_format_without_kernels_is_named_as_such(tmp_path: Path) -> None:
    path = convolution(tmp_path / "double.onnx", TensorProto.DOUBLE, np.zeros((2, 3, 3, 3)))
    with pytest.raises(ExportError, match="Could not find an implementation for Conv") as refused:
        open_session(path, threads=1)
    assert "float32" in refused.value.hint


def test_half_a_file_may_be_truncated(tmp_path: Path) -> None:
    path = convolution(tmp_path / "half.onnx", TensorProto.FLOAT, np.zeros((2, 3, 3, 3), np.float32))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ExportError) as refused:
        open_session(path, threads=1)
    assert "truncated" in refused.value.hint
