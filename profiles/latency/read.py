"""Reading operators from any ONNX file, as a runtime would execute them: normalisation folded, activations fused.

Shapes come from ONNX' own inference, and from a run where that leaves some open; an open first dimension is taken as a
batch of one sample. What is only bookkeeping (constants, shapes, identities) is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from secateur.core.costs import Costs
from secateur.core.errors import ExportError, described
from secateur.profiles.latency.operators import Operator, Shape, total_macs
from secateur.profiles.latency.routed import with_routed_rows
from secateur.profiles.latency.seen_shapes import with_seen_shapes

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
    "Equal": "elementwise", "NonZero": "reduce", "ScatterND": "slice", "QLinearConv": "conv", "ConvInteger": "conv",
    "LSTM": "linear", "GRU": "linear", "RNN": "linear",
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
_MATRICES = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
_QUANTISED = {"DequantizeLinear": 0, "ConvInteger": 1, "MatMulInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3}
"""Operator → which of its operands are weights in whole numbers."""
_CHOOSING = ("If", "Loop", "Scan")


def read_onnx(path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> list[Operator]:
    """The operators of a file in its order.

    Args:
        shapes: input name → shape, for inputs with open dimensions other than the first.

    Raises:
        ExportError: a file that is missing, truncated or not ONNX, whose shapes stay unknown, that chooses while it
            runs what to compute, or that computes nothing.
    """
    return read_with_costs(path, shapes)[0]


def read_with_costs(
    path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[list[Operator], Costs]:
    """As `read_onnx` and `onnx_costs`, from one inference of shapes."""
    reader = _reader(path, shapes)
    found = reader.operators()
    if not found:
        raise ExportError(f"{path} computes nothing that takes time", "give a model with operators")
    return found, reader.costs(found)


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
    reader = _reader(path, shapes)
    return reader.costs(reader.operators())


def count_parameters(graph: Any) -> int:
    """Weights of an `onnx.GraphProto`, those that several operators share once: floating-point numbers, also where
    they stand in a node, and whole numbers that a quantised operator multiplies by."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    stored = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].t.dims:
            stored[node.output[0]] = node.attribute[0].t
    quantised = {
        node.input[place]
        for node in graph.node
        if (place := _QUANTISED.get(node.op_type)) is not None and place < len(node.input)
    }
    return sum(prod(weight.dims) for name, weight in stored.items() if weight.data_type in floats or name in quantised)


def read_onnx_bytes(content: bytes) -> list[Operator]:
    """The same for a file in memory, whose shapes are all fixed."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    return _Reader(model.graph, Path("model.onnx")).operators()


def _reader(path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None) -> _Reader:
    return _Reader(_inferred(Path(path), shapes or {}).graph, Path(path))


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
    inputs = {value.name: value for value in model.graph.input if value.name not in constant}
    if unknown := sorted(shapes.keys() - inputs.keys()):
        raise ExportError(f"{path} has no input {unknown[0]}", f"its inputs are: {', '.join(inputs)}")
    for name, value in inputs.items():
        _close(value, path, shapes.get(name))
    del model.graph.value_info[:]
    try:
        inferred = with_routed_rows(onnx.shape_inference.infer_shapes(model, data_prop=True))
    except Exception as error:  # onnx raises its own C++ errors
        raise ExportError(
            f"the shapes of {path} do not fit together: {described(error)}", "check it with onnx.checker"
        ) from error
    return with_seen_shapes(inferred, path)


def _close(value: Any, path: Path, given: Sequence[int] | None) -> None:
    dims = value.type.tensor_type.shape.dim
    if given is not None and len(given) != len(dims):
        raise ExportError(
            f"{path}: input {value.name} has {len(dims)} dimensions, its shape was given as {list(given)}",
            "give one size for each dimension",
        )
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
        self._graph, self._path, self._nodes = graph, path, list(graph.node)
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
        """In the order of the file.

        Raises:
            ExportError: an operator without what its kind must have, of unknown shape, or that runs other graphs.
        """
        found = []
        for node in self._nodes:
            if node.op_type in _CHOOSING:
                raise ExportError(
                    f"{self._path} chooses while it runs what to compute ({node.op_type})",
                    "export the model without control flow",
                )
            try:
                if not self._silent(node) and not self._fused(node) and not self._gates(node):
                    found.append(self._operator(node))
            except (IndexError, KeyError, StopIteration) as error:
                raise ExportError(
                    f"{self._path}: {node.op_type} {node.name} lacks an operand or a dimension",
                    "check it with onnx.checker",
                ) from error
        return found

    def costs(self, operators: Sequence[Operator]) -> Costs:
        weights = count_parameters(self._graph)
        return Costs(2 * total_macs(operators), weights, 4 * self.peak_elements(), 4 * weights)

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
        owner = dict(owner)

        def memory(name: str) -> str:
            while name in owner:
                name = owner[name]
            return name

        last, outputs = self._lives(steps, owner)
        for step, node in enumerate(steps):
            made = node.output[0]
            if _KINDS.get(node.op_type) not in ("activation", "elementwise") or made in owner:
                continue
            for name in map(memory, node.input):
                free = last.get(name) == step and name not in outputs and name not in self._inputs
                if free and size.get(name) == size.get(made):
                    owner[made], last[name] = name, last.get(made, step)
                    if made in outputs:
                        outputs.add(name)
                    break
        return {name: memory(name) for name in owner}

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
        made = next(name for name in node.output if name)
        output = self._sample(made)
        sizes = [prod(self._shapes_of(name)) for name in node.input if name in self._constants]
        weights = sum(sizes[:2]) if node.op_type in _RECURRENT else max(sizes, default=0)
        window = list(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else [1, 1]
        if kind in ("conv", "deconv"):
            window = list(self._shape(self._right(node))[2:])
        return Operator(
            kind, tuple(_plane(each, kind) for each in inputs) or ((1,),), _plane(output, kind), _kernel(window),
            max(_ints(attributes, "strides"), default=1), max(_ints(attributes, "dilations"), default=1),
            int(attributes["group"].i) if "group" in attributes else 1,
            weights if kind in _PRODUCTS else 0, self._function(node), node.name or made,
            self._multiplications(node, kind, prod(output)),
        )  # fmt: skip

    def _right(self, node: Any) -> str:
        """The second operand of a product."""
        return str(node.input[_QUANTISED.get(node.op_type, 1)])

    def _multiplications(self, node: Any, kind: str, elements: int) -> int:
        """Of a product for which the shapes of its activations do not tell them; 0 for others."""
        if node.op_type in _RECURRENT:
            return self._shape(node.input[0])[0] * sum(prod(self._shape(name)) for name in node.input[1:3])
        if kind != "matmul":
            return 0
        left = self._shape(node.input[0])
        if node.op_type == "Einsum":
            return elements * self._summed(node)
        if node.op_type in ("Attention", "MultiHeadAttention"):
            return (prod(self._sample(node.input[0])) + elements) * self._shape(node.input[1])[-2]
        turned = any(each.name == "transA" and each.i for each in node.attribute)
        return elements * left[-2 if turned else -1]

    def _summed(self, node: Any) -> int:
        """The product of the sizes of the letters that an Einsum sums over."""
        equation = next(each.s for each in node.attribute if each.name == "equation").decode()
        operands, _, result = equation.replace(" ", "").partition("->")
        sizes: dict[str, int] = {}
        for name, letters in zip(node.input, operands.split(","), strict=True):
            before, _, after = letters.partition("...")
            shape = self._shape(name)
            sizes |= dict(zip(before, shape, strict=False))
            sizes |= dict(zip(reversed(after), reversed(shape), strict=False))
        return prod(size for letter, size in sizes.items() if letter not in result)

    def _function(self, node: Any) -> str:
        """Of an activation; x * sigmoid(x) is one of its own."""
        gate = node.op_type == "Sigmoid" and any(
            node.output[0] in user.input and self._gates(user) for user in self._nodes
        )
        return "swish" if gate else _FUNCTIONS.get(node.op_type, "")

    def _kind(self, node: Any) -> str:
        if node.op_type in _MATRICES:
            right = self._right(node)
            return "linear" if right in self._constants and len(self._shape(right)) == 2 else "matmul"
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
                "simplify the model, or export it with fixed shapes (secateur export --to onnx --static)",
            )
        return shape


def _kernel(window: Sequence[int]) -> tuple[int, int]:
    """Of a 3-D kernel the first two sizes are multiplied; a 1-D one has a second size of one."""
    return (prod(window[:-1]), window[-1]) if len(window) > 1 else (window[0], 1)


def _ints(attributes: Mapping[str, Any], name: str) -> list[int]:
    return list(attributes[name].ints) if name in attributes else [1]


def _plane(shape: Shape, kind: str) -> Shape:
    """A scalar counts as one channel; a 1-D convolution as one with a width of one."""
    if kind in ("conv", "deconv") and len(shape) == 2:
        return (*shape, 1)
    return shape or (1,)
