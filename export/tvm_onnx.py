"""What TVM cannot say well, said differently in ONNX before it is imported.

- A transposed convolution is an ordinary one whose output channels are the phases of the larger image, then rearranged
  (sub-pixel convolution, Shi et al., CVPR 2016): no multiplication with inserted zeros.
- ReLU6 is two ReLUs and their difference: TVM's importer would look for NaN first, in programs of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from secateur.export.runtime import Array

LARGEST_CLIP = 1e3
"""Above, the difference of the two ReLUs would lose digits."""


def simplified(model: Any) -> Any:
    """A copy of an ONNX model (shapes known) in which the nodes above are replaced."""
    import onnx

    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    found = _Graph(graph)
    nodes = [new for node in graph.node for new in _REWRITES.get(node.op_type, _same)(node, found)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return model


def fixed(model: Any, shapes: Mapping[str, Sequence[int]]) -> Any:
    """An ONNX model whose inputs have these shapes; it is changed. Other shapes follow from them."""
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    if shapes:
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
    return model


class _Graph:
    """Constants and ranks of a graph, and where new constants go."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._graph, self._numpy = graph, numpy_helper
        self._weights = {each.name: each for each in graph.initializer}
        self._constants = {each.output[0]: each for each in graph.node if each.op_type == "Constant"}
        self._types = {each.name: each.type.tensor_type for each in [*graph.input, *graph.value_info, *graph.output]}
        self._count = 0

    def constant(self, name: str) -> Array | None:
        if name in self._weights:
            return self._numpy.to_array(self._weights[name])  # type: ignore[no-any-return]
        value = (
            next((a.t for a in self._constants[name].attribute if a.name == "value"), None)
            if (name in self._constants)
            else None
        )
        return None if value is None else self._numpy.to_array(value)

    def shape(self, name: str) -> list[int]:
        return [dim.dim_value for dim in self._types[name].shape.dim] if name in self._types else []

    def add(self, value: Array) -> str:
        name = self.fresh("constant")
        self._graph.initializer.append(self._numpy.from_array(value, name))
        return name

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"secateur_{stem}_{self._count}"


def _same(node: Any, graph: _Graph) -> list[Any]:
    return [node]


def _clip(node: Any, graph: _Graph) -> list[Any]:
    """min(max(x, 0), h) = r - max(r - h, 0) with r = max(x, 0)."""
    from onnx import helper

    low, high = ([*(graph.constant(name) for name in node.input[1:3]), None, None])[:2]
    if low is None or high is None or low.size != 1 or float(low) != 0 or not 0 < float(high) <= LARGEST_CLIP:
        return [node]
    x, output, limit = node.input[0], node.output[0], node.input[2]
    positive, above, cut = graph.fresh("positive"), graph.fresh("above"), graph.fresh("cut")
    return [
        helper.make_node("Relu", [x], [positive]),
        helper.make_node("Sub", [positive, limit], [above]),
        helper.make_node("Relu", [above], [cut]),
        helper.make_node("Sub", [positive, cut], [output]),
    ]


def _transposed(node: Any, graph: _Graph) -> list[Any]:
    """Y[s·q + r] = Σ_t X[q - t] · W[s·t + r - ...]: for each phase r an ordinary convolution."""
    from onnx import helper

    weight, attrs = graph.constant(node.input[1]), {a.name: helper.get_attribute_value(a) for a in node.attribute}
    wanted = graph.shape(node.output[0])
    plain = attrs.get("group", 1) == 1 and set(attrs.get("dilations", [1])) == {1}
    if weight is None or weight.ndim != 4 or not plain or attrs.get("auto_pad", b"NOTSET") != b"NOTSET":
        return [node]
    strides, pads = attrs.get("strides", [1, 1]), attrs.get("pads", [0, 0, 0, 0])
    if strides[0] != strides[1] or len(wanted) != 4 or not all(wanted):
        return [node]
    s, (taps_y, taps_x) = strides[0], (math.ceil(size / strides[0]) for size in weight.shape[2:])
    depth, columns, kh, kw = weight.shape
    whole = np.zeros((depth, columns, taps_y * s, taps_x * s), weight.dtype)
    whole[:, :, :kh, :kw] = weight
    # [C, F, ty, ry, tx, rx] → [F, ry, rx, C, ty, tx], taps turned around: a convolution reads X[q + t]
    phases = whole.reshape(depth, columns, taps_y, s, taps_x, s).transpose(1, 3, 5, 0, 2, 4)[..., ::-1, ::-1]
    kernel = np.ascontiguousarray(phases.reshape(columns * s * s, depth, taps_y, taps_x))
    full, shuffled = graph.fresh("phases"), graph.fresh("image")
    inputs = [node.input[0], graph.add(kernel)]
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        if bias is None:
            return [node]
        inputs.append(graph.add(np.repeat(bias, s * s)))
    more_y, more_x = (
        max(0, pad + size - s * (extent - 1 + taps))
        for pad, size, extent, taps in _ends(pads, wanted, graph.shape(node.input[0]), (taps_y, taps_x))
    )
    reach = [taps_y - 1, taps_x - 1, taps_y - 1 + math.ceil(more_y / s), taps_x - 1 + math.ceil(more_x / s)]
    starts, ends = pads[:2], [pads[0] + wanted[2], pads[1] + wanted[3]]
    return [
        helper.make_node("Conv", inputs, [full], kernel_shape=[taps_y, taps_x], pads=reach),
        helper.make_node("DepthToSpace", [full], [shuffled], blocksize=s, mode="CRD"),
        helper.make_node(
            "Slice",
            [shuffled, *(graph.add(np.array(each, np.int64)) for each in (starts, ends, [2, 3]))],
            [node.output[0]],
        ),
    ]


def _ends(
    pads: list[int], wanted: list[int], given: list[int], taps: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    return [(pads[axis], wanted[2 + axis], given[2 + axis], taps[axis]) for axis in (0, 1)]


_REWRITES: Mapping[str, Callable[[Any, _Graph], list[Any]]] = {"Clip": _clip, "ConvTranspose": _transposed}
