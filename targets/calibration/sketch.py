"""Sketch: a network drawn in a few calls, as an ONNX file and as a graph of ncnn, with weights of noise.

    sketch = Sketch((3, 64, 64)); x = sketch.conv(sketch.input, 32, 3, stride=2); sketch.finish(x)
    sketch.onnx(), sketch.ncnn()

Made for timing: operators that are measured, and whole random networks, exist in milliseconds and need no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.profiles.latency.operators import Operator, Shape

_OPSET = 17
_NCNN_FUNCTIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "hswish": "HardSwish", "gelu": "GELU", "swish": "Swish"}


@dataclass(frozen=True)
class Value:
    """A tensor of the network: its name, and its shape without the batch."""

    name: str
    shape: Shape


class Sketch:
    """A network while it is drawn; values are what its methods return. `macs` and `weights` count what is there."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.input = Value("x", shape)
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._ncnn: list[tuple[str, str, list[str], str, str]] = []
        self._output: Value | None = None
        self.macs = self.weights = 0

    def conv(
        self, x: Value, outs: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False, relu: bool = False,
        name: str = "",
    ) -> Value:  # fmt: skip
        """A convolution with padding that keeps the size up to the stride, and a ReLU that runtimes fuse with it."""
        ins, height, width = x.shape
        groups, pad = (ins if depthwise else 1), kernel // 2
        shape = (outs, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1)
        name = name or f"conv{len(self._nodes)}"
        weight, bias = (
            self._weight(name + ".w", (outs, ins // groups, kernel, kernel)),
            self._weight(name + ".b", (outs,)),
        )
        out = self._node(
            "Conv", [x.name, weight, bias], name, shape,
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups,
        )  # fmt: skip
        size = outs * ins // groups * kernel * kernel
        self._count(size, prod(shape[1:]))
        kind = "ConvolutionDepthWise" if depthwise else "Convolution"
        text = f"0={outs} 1={kernel} 3={stride} 4={pad} 5=1 6={size}" + (f" 7={groups}" if depthwise else "")
        if not relu:
            self._layer(kind, name, [x], out, text)
            return out
        active = self._node("Relu", [out.name], name + ".relu", shape)
        self._layer(kind, name, [x], active, text + " 9=1")
        return active

    def linear(self, x: Value, outs: int, name: str = "") -> Value:
        """A linear layer on a vector, or on what is flattened to one."""
        size, name = prod(x.shape), name or f"linear{len(self._nodes)}"
        flat = x if len(x.shape) == 1 else self._node("Flatten", [x.name], name + ".flat", (size,), axis=1)
        weight, bias = self._weight(name + ".w", (outs, size)), self._weight(name + ".b", (outs,))
        self._count(outs * size)
        out = self._node("Gemm", [flat.name, weight, bias], name, (outs,), transB=1)
        self._layer("InnerProduct", name, [x], out, f"0={outs} 1=1 2={outs * size}")
        return out

    def add(self, x: Value, y: Value, name: str = "") -> Value:
        out = self._node("Add", [x.name, y.name], name or f"add{len(self._nodes)}", x.shape)
        self._layer("BinaryOp", out.name, [x, y], out, "0=0")
        return out

    def concat(self, x: Value, y: Value, name: str = "") -> Value:
        shape = (x.shape[0] + y.shape[0], *x.shape[1:])
        out = self._node("Concat", [x.name, y.name], name or f"concat{len(self._nodes)}", shape, axis=1)
        self._layer("Concat", out.name, [x, y], out, "0=0")
        return out

    def activation(self, x: Value, function: str, name: str = "") -> Value:
        name = name or f"act{len(self._nodes)}"
        if function in ("swish", "gelu"):
            gate = self._node("Sigmoid", [x.name], name, x.shape)  # ONNX Runtime makes one operator of the two
            out = self._node("Mul", [x.name, gate.name], name + ".mul", x.shape)
        else:
            kind = {"relu": "Relu", "sigmoid": "Sigmoid", "hswish": "HardSwish"}[function]
            out = self._node(kind, [x.name], name, x.shape)
        self._layer(_NCNN_FUNCTIONS[function], name, [x], out, "")
        return out

    def pool(self, x: Value, *, whole: bool = False, name: str = "") -> Value:
        """The mean over all of a plane, or the maximum of each 2x2 pixels."""
        channels, height, width = x.shape
        name = name or f"pool{len(self._nodes)}"
        if whole:
            out = self._node("GlobalAveragePool", [x.name], name, (channels, 1, 1))
            self._layer("Pooling", name, [x], out, "0=1 4=1")
            return out
        shape = (channels, height // 2, width // 2)
        out = self._node("MaxPool", [x.name], name, shape, kernel_shape=[2, 2], strides=[2, 2])
        self._layer("Pooling", name, [x], out, "0=0 1=2 2=2 5=1")
        return out

    def finish(self, output: Value) -> Sketch:
        self._output = output
        return self

    def onnx(self) -> bytes:
        """The file's bytes."""
        from onnx import TensorProto, helper

        assert self._output is not None
        graph = helper.make_graph(
            self._nodes, "sketch",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *self.input.shape])],
            [helper.make_tensor_value_info(self._output.name, TensorProto.FLOAT, [1, *self._output.shape])],
            self._weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
        return bytes(model.SerializeToString())

    def ncnn(self) -> str:
        """The graph's text; a value that several layers read is split, as ncnn wants it."""
        uses: dict[str, int] = {}
        for _, _, inputs, _, _ in self._ncnn:
            for name in inputs:
                uses[name] = uses.get(name, 0) + 1
        lines, taken, blobs = ["Input input 0 1 x"], dict.fromkeys(uses, 0), 1
        if uses.get("x", 0) > 1:
            lines, blobs = [*lines, _split("x", uses["x"])], blobs + uses["x"]
        for kind, name, inputs, output, text in self._ncnn:
            read = []
            for each in inputs:
                read.append(each if uses[each] == 1 else f"{each}_{taken[each]}")
                taken[each] += 1
            lines.append(f"{kind} {name} {len(read)} 1 {' '.join(read)} {output} {text}")
            blobs += 1
            if uses.get(output, 0) > 1:
                lines, blobs = [*lines, _split(output, uses[output])], blobs + uses[output]
        return f"7767517\n{len(lines)} {blobs}\n" + "\n".join(lines) + "\n"

    @property
    def output(self) -> Value:
        assert self._output is not None
        return self._output

    def _node(self, kind: str, inputs: list[str], name: str, shape: Shape, **attributes: Any) -> Value:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return Value(name, shape)

    def _weight(self, name: str, shape: Shape) -> str:
        from onnx import numpy_helper

        values: NDArray[np.float32] = self._random.standard_normal(shape, np.float32) * np.float32(0.1)
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def _count(self, weights: int, pixels: int = 1) -> None:
        self.weights, self.macs = self.weights + weights, self.macs + weights * pixels

    def _layer(self, kind: str, name: str, inputs: list[Value], output: Value, text: str) -> None:
        self._ncnn.append((kind, name, [each.name for each in inputs], output.name, text))


def _split(name: str, count: int) -> str:
    return f"Split {name}_split 1 {count} {name} " + " ".join(f"{name}_{index}" for index in range(count))


def operator_sketch(operator: Operator, *, bare: bool = False) -> Sketch:
    """An operator, named `op`, between two small convolutions that hand it its input in the layout that networks have.

    Args:
        bare: without the operator, which must keep the shape of its first input.
    """
    shape = operator.inputs[0]
    if operator.kind == "linear":
        sketch = Sketch((8,))
        hidden = sketch.linear(sketch.input, shape[0], name="pre")
        return sketch.finish(sketch.linear(hidden, operator.output[0], name="op"))
    image = operator.kind == "conv" and shape[0] <= 4
    sketch = Sketch(shape if image else (8, *shape[1:]))
    x = sketch.input if image else sketch.conv(sketch.input, shape[0], name="pre")
    y = sketch.conv(sketch.input, shape[0], name="pre2") if len(operator.inputs) > 1 else x
    if bare:
        return sketch.finish(sketch.conv(x, 8, name="post") if y is x else _both(sketch, x, y))
    if operator.kind == "conv":
        kernel = operator.kernel[0]
        x = sketch.conv(
            x, operator.output[0], kernel, operator.stride, depthwise=operator.depthwise, relu=True, name="op"
        )
    elif operator.kind == "elementwise":
        x = sketch.add(x, y, name="op")
    elif operator.kind == "concat":
        x = sketch.concat(x, y, name="op")
    elif operator.kind == "pool":
        x = sketch.pool(x, whole=operator.pixels == 1, name="op")
    else:
        x = sketch.activation(x, operator.function, name="op")
    return sketch.finish(sketch.conv(x, 8, name="post"))


def _both(sketch: Sketch, x: Value, y: Value) -> Value:
    """Two results that both are needed, joined where they are small."""
    return sketch.add(sketch.conv(x, 8, name="post"), sketch.conv(y, 8, name="post2"), name="join")
