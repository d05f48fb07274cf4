"""Reading operators from any ONNX file, as a runtime would execute them: normalisation folded, activations fused.

Shapes come from ONNX' own inference; an open first dimension is taken as a batch of one sample. What is only
bookkeeping (constants, shapes, identities) is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from secateur.core.costs import Costs
from secateur.core.errors import ExportError
from secateur.profiles.latency.operators import Operator, Shape, total_macs
from secateur.profiles.latency.routed import with_routed_rows

_KINDS = {
    "Conv": "conv", "ConvTranspose": "deconv", "Gemm": "linear", "MaxPool": "pool", "AveragePool": "pool",
    "GlobalAveragePool": "pool", "GlobalMaxPool": "pool", "LRN": "lrn", "Relu": "activation", "LeakyRelu": "activation",
    "Clip": "activation", "Sigmoid": "activation", "HardSigmoid": "activation", "HardSwish": "activation",
    "Tanh": "activation", "Gelu": "activation", "Erf": "activation", "Elu": "activation", "PRelu": "activation",
    "Softplus": "activation", "Exp": "activation", "Sqrt": "activation", "Swish": "activation", "Mish": "activation",
    "Add": "elementwise", "Sub": "elementwise", "Mul": "elementwise", "Div": "elementwise", "Max": "elementwise",
    "Min": "elementwise", "Pow": "elementwise", "Sum": "elementwise", "Where": "elementwise", "Concat": "concat",
    "Slice": "slice", "Split": "slice", "Gather": "slice", "Transpose": "shuffle", "Reshape": "reshape",
    "Flatten": "reshape", "Squeeze": "reshape", "Unsqueeze": "reshape", "ReduceMean": "reduce", "ReduceSum": "reduce",
    "ReduceMax": "reduce", "ReduceL2": "reduce", "Resize": "resize", "Upsample": "resize", "Softmax": "softmax",
    "LogSoftmax": "softmax", "BatchNormalization": "norm", "LayerNormalization": "layernorm",
    "InstanceNormalization": "layernorm", "GroupNormalization": "layernorm", "Pad": "concat", "Expand": "concat",
    "Tile": "concat", "DepthToSpace": "shuffle", "SpaceToDepth": "shuffle", "TopK": "softmax", "ArgMax": "reduce",
    "Equal": "elementwise", "NonZero": "reduce", "ScatterND": "slice",
}  # fmt: skip
_FUNCTIONS = {
    "Relu": "relu", "LeakyRelu": "relu", "Clip": "relu", "Sigmoid": "sigmoid", "HardSigmoid": "hswish",
    "HardSwish": "hswish", "Tanh": "tanh", "Gelu": "gelu", "Erf": "gelu", "Swish": "swish", "Mish": "swish",
}  # fmt: skip
_KNOWN = frozenset(("Constant", "ConstantOfShape", "Shape", "Range", "Size"))
"""Known before the model runs, as shapes are."""
_SILENT = frozenset(("Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear"))
_FUSES = frozenset(("Relu", "LeakyRelu", "Clip", "BatchNormalization"))
"""What ncnn and ONNX Runtime compute together with the convolution or linear layer before it."""
_PRODUCTS = ("conv", "deconv", "linear")


def read_onnx(path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> list[Operator]:
    """The operators of a file in its order.

    Args:
        shapes: input name → shape, for inputs with open dimensions other than the first.

    Raises:
        ExportError: a file that is missing, truncated or not ONNX, or whose shapes stay unknown.
    """
    model = _inferred(Path(path), shapes or {})
    return _Reader(model.graph, Path(path)).operators()


def onnx_costs(path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> Costs:
    """What a file's operators cost, in float32, for one sample.

    Peak memory is weights, and the largest sum of activations that exist at one time. Liveness in the order of the
    file: a value exists from the operator that makes it to the last one that reads it, and while an operator runs,
    what it reads and what it writes both exist. Renamed memory (reshapes) and fused activations count once, and what
    works element by element writes over an operand of the same size that nothing else needs. Padding of a runtime's
    own layouts and workspace are not known from here, see docs/latency.md.

    Raises:
        ExportError: as `read_onnx`.
    """
    graph = _inferred(Path(path), shapes or {}).graph
    reader, weights = _Reader(graph, Path(path)), count_parameters(graph)
    return Costs(2 * total_macs(reader.operators()), weights, 4 * reader.peak_elements(), 4 * weights)


def count_parameters(graph: Any) -> int:
    """Floating-point numbers among the weights of an `onnx.GraphProto`, those that several operators share once."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return sum(prod(weight.dims) for weight in graph.initializer if weight.data_type in floats)


def read_onnx_bytes(content: bytes) -> list[Operator]:
    """The same for a file in memory, whose shapes are all fixed."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    return _Reader(model.graph, Path("model.onnx")).operators()


def _inferred(path: Path, shapes: Mapping[str, Sequence[int]]) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ExportError(
            f"cannot read {path} as an ONNX model", "the file may be truncated: copy or export it again"
        ) from error
    if not model.graph.node:
        raise ExportError(f"{path} holds no operators", "the file may be truncated: copy or export it again")
    constant = {weight.name for weight in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constant:
            _close(value, path, shapes.get(value.name))
    del model.graph.value_info[:]
    try:
        return with_routed_rows(onnx.shape_inference.infer_shapes(model, data_prop=True))
    except Exception as error:  # onnx raises its own C++ errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"the shapes of {path} do not fit together: {reason}", "check it with onnx.checker"
        ) from error


def _close(value: Any, path: Path, given: Sequence[int] | None) -> None:
    dims = value.type.tensor_type.shape.dim
    for axis, dim in enumerate(dims):
        if given is not None and axis < len(given):
            dim.dim_value = given[axis]
        elif axis == 0 and dim.dim_value <= 0:
            dim.dim_value = 1
        elif dim.dim_value <= 0:
            raise ExportError(
                f"{path}: input {value.name} leaves dimension {axis} open",
                f"give its shape: --shape {value.name}=1x...",
            )


class _Reader:
    """One graph with its shapes, weights and the uses of each value."""

    def __init__(self, graph: Any, path: Path) -> None:
        self._path, self._nodes = path, list(graph.node)
        self._weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        self._shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.HasField("tensor_type")
        }
        self._constants = set(self._weights)
        self._inputs = [value.name for value in graph.input if value.name not in self._weights]
        self._batch = next((shape[0] for name in self._inputs if (shape := self._shapes.get(name))), 1) or 1
        self._outputs = [value.name for value in graph.output]
        self._maker = {name: node for node in self._nodes for name in node.output}
        self._uses: dict[str, int] = {}
        for node in self._nodes:
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1

    def operators(self) -> list[Operator]:
        return [
            self._operator(node)
            for node in self._nodes
            if not self._silent(node) and not self._fused(node) and not self._gates(node)
        ]

    def peak_elements(self) -> int:
        """Elements of all weights, and of the activations alive at the worst moment."""
        steps = [node for node in self._nodes if not self._silent(node)]
        size = {name: prod(shape) for name, shape in self._shapes.items() if all(each > 0 for each in shape)}
        owner = self._in_place(steps, self._renamed(steps), size)
        last, outputs = self._lives(steps, owner)
        alive = {name for name in self._inputs if name in last}
        peak = sum(size.get(name, 0) for name in alive)
        for step, node in enumerate(steps):
            alive |= {owner.get(name, name) for name in node.output if name}
            peak = max(peak, sum(size.get(name, 0) for name in alive))
            alive = {name for name in alive if name in outputs or last.get(name, -1) > step}
        return int(peak + sum(map(prod, self._weights.values())))

    def _renamed(self, steps: Sequence[Any]) -> dict[str, str]:
        """Value → the one whose memory it is: of what is reshaped, and of what the operator before computes along."""
        owner: dict[str, str] = {}
        for node in steps:
            if _KINDS.get(node.op_type) == "reshape" or self._fused(node):
                owner[node.output[0]] = owner.get(node.input[0], node.input[0])
        return owner

    def _in_place(self, steps: Sequence[Any], owner: dict[str, str], size: Mapping[str, int]) -> dict[str, str]:
        """The same, with what is written over an operand that nothing else needs."""
        for step, node in enumerate(steps):
            if _KINDS.get(node.op_type) not in ("activation", "elementwise") or node.output[0] in owner:
                continue
            last, outputs = self._lives(steps, owner)
            made = node.output[0]
            for name in (owner.get(each, each) for each in node.input):
                free = last.get(name) == step and name not in outputs and name not in self._inputs
                if free and size.get(name) == size.get(made):
                    owner = {key: name if value == made else value for key, value in owner.items()} | {made: name}
                    break
        return owner

    def _lives(self, steps: Sequence[Any], owner: Mapping[str, str]) -> tuple[dict[str, int], set[str]]:
        """Of each piece of memory the last step that reads it, and which of them hold the outputs."""
        last = {owner.get(name, name): step for step, node in enumerate(steps) for name in node.input}
        return last, {owner.get(name, name) for name in self._outputs}

    def _silent(self, node: Any) -> bool:
        """Whether a node is bookkeeping, or can be computed before the model runs."""
        known = node.op_type in _KNOWN or all(name in self._constants for name in node.input)
        if known:
            self._constants.update(node.output)
        return known or node.op_type in _SILENT

    def _fused(self, node: Any) -> bool:
        """Whether the operator before computes this one along."""
        if node.op_type not in _FUSES:
            return False
        before = self._maker.get(node.input[0])
        while before is not None and before.op_type in _FUSES and self._uses[before.output[0]] == 1:
            before = self._maker.get(before.input[0])
        alone = self._uses.get(node.input[0], 0) == 1
        return before is not None and alone and _KINDS.get(before.op_type) in _PRODUCTS

    def _gates(self, node: Any) -> bool:
        """Whether this is the product in x * sigmoid(x), which is one activation."""
        if node.op_type != "Mul":
            return False
        makers = [self._maker.get(name) for name in node.input]
        return any(
            maker is not None and maker.op_type in ("Sigmoid", "HardSigmoid") and maker.input[0] in node.input
            for maker in makers
        )

    def _operator(self, node: Any) -> Operator:
        attributes = {each.name: each for each in node.attribute}
        kind = self._kind(node)
        inputs = tuple(self._sample(name) for name in node.input if name and name not in self._constants)
        output = self._sample(node.output[0])
        weights = max((prod(self._shapes_of(name)) for name in node.input if name in self._constants), default=0)
        window = list(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else [1, 1]
        if kind in ("conv", "deconv"):
            window = list(self._weights.get(node.input[1], (1, 1, *window))[2:]) or window
        name = node.name or node.output[0]
        return Operator(
            kind, _planes(inputs, kind), _plane(output, kind), (window[0], window[-1] if len(window) > 1 else 1),
            max(_ints(attributes, "strides"), default=1), max(_ints(attributes, "dilations"), default=1),
            int(attributes["group"].i) if "group" in attributes else 1,
            weights if kind in _PRODUCTS else 0, self._function(node), name,
        )  # fmt: skip

    def _function(self, node: Any) -> str:
        """Of an activation; x * sigmoid(x) is one of its own."""
        gate = node.op_type == "Sigmoid" and any(
            node.output[0] in user.input and self._gates(user) for user in self._nodes
        )
        return "swish" if gate else _FUNCTIONS.get(node.op_type, "")

    def _kind(self, node: Any) -> str:
        if node.op_type == "MatMul":
            return "linear" if node.input[1] in self._constants else "matmul"
        if node.op_type in ("Attention", "MultiHeadAttention", "Einsum"):
            return "matmul"
        if node.op_type == "ReduceMean" and prod(self._shape(node.output[0])[2:]) == 1 < prod(
            self._shape(node.input[0])[2:]
        ):
            return "pool"  # over all of a plane
        return _KINDS.get(node.op_type) or str(node.op_type).lower()

    def _sample(self, name: str) -> Shape:
        """The shape for one sample: without the batch, or with the rows that it has there (tokens, windows)."""
        shape = self._shape(name)
        rows = shape[0] // self._batch if shape and shape[0] % self._batch == 0 else 1
        return shape[1:] if rows == 1 else (rows, *shape[1:])

    def _shapes_of(self, name: str) -> Shape:
        """The shape of a constant, (0,) where it is unknown."""
        return self._weights.get(name) or self._shapes.get(name) or (0,)

    def _shape(self, name: str) -> Shape:
        shape = self._weights.get(name) or self._shapes.get(name)
        if shape is None or any(size <= 0 for size in shape):
            raise ExportError(
                f"{self._path}: the shape of {name} is unknown",
                "simplify the model, or export it with fixed shapes (secateur export --to onnx does)",
            )
        return shape


def _ints(attributes: Mapping[str, Any], name: str) -> list[int]:
    return list(attributes[name].ints) if name in attributes else [1]


def _planes(shapes: Sequence[Shape], kind: str) -> tuple[Shape, ...]:
    return tuple(_plane(shape, kind) for shape in shapes) or ((1,),)


def _plane(shape: Shape, kind: str) -> Shape:
    """A scalar counts as one channel; a 1-D convolution as one with a width of one."""
    if kind in ("conv", "deconv") and len(shape) == 2:
        return (*shape, 1)
    return shape or (1,)
