"""Shapes that ONNX' own inference leaves open, seen by running it once: zeros go in, open values come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def with_seen_shapes(model: Any, path: Path) -> Any:
    """An `onnx.ModelProto` with closed inputs whose open shapes are filled in, as far as ONNX Runtime runs it."""
    from onnx import helper

    graph = model.graph
    known = {value.name for value in (*graph.value_info, *graph.output) if _is_closed(value)}
    known |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if not unknown:
        return model
    try:
        values = _run(model, path, unknown)
    except Exception:  # ONNX Runtime's errors share no base class; whoever reads an open shape says which it is
        return model
    for name, value in zip(unknown, values, strict=True):
        if hasattr(value, "dtype"):  # no sequence of tensors
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.value_info.append(helper.make_tensor_value_info(name, kind, value.shape))
            _close(graph.output, name, value.shape)
    return model


def _is_closed(value: Any) -> bool:
    tensor = value.type.tensor_type
    return bool(tensor.HasField("shape")) and all(dim.dim_value > 0 for dim in tensor.shape.dim)


def _close(outputs: Sequence[Any], name: str, shape: Sequence[int]) -> None:
    """Close the shape of a graph's output of this name, if it has one."""
    for output in outputs:
        if output.name == name:
            dims = output.type.tensor_type.shape.dim
            del dims[:]
            for size in shape:
                dims.add().dim_value = size


def _run(model: Any, path: Path, names: Sequence[str]) -> list[Any]:
    """The values of these names for inputs of zeros, in the shapes that the inputs have."""
    import numpy as np
    import onnx
    import onnxruntime

    whole = onnx.load(path)  # with weights that lie beside it
    del whole.graph.input[:], whole.graph.output[:], whole.graph.value_info[:]
    whole.graph.input.extend(model.graph.input)
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    feeds = {
        each.name: np.zeros(each.shape, onnx.helper.tensor_dtype_to_np_dtype(kinds[each.name]))
        for each in session.get_inputs()
    }
    found: list[Any] = session.run(list(names), feeds)
    return found
