"""Reading operators from a traced graph, as a runtime would execute them, with sizes left open.

    steps = read_graph(graph)
    operators_of(steps, size)     # size(node, dim): as traced, or with channels removed

The same operators that `read_onnx` finds in the exported file: normalisation folded, activations fused, bookkeeping
left out. So a model need not be exported to be predicted, and one trace predicts it at any widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from secateur.profiles.count import PerSample, per_sample
from secateur.profiles.graph import Graph, is_in_place, module_path, op_name, shape
from secateur.profiles.latency.operators import CONVOLUTIONS, Operator, Shape
from secateur.profiles.latency.routed import rows_of
from secateur.profiles.macs import (
    RECURRENT,
    RECURRENT_CELLS,
    Factor,
    Size,
    Term,
    arguments,
    mac_terms,
    traced_size,
)

_KINDS = {
    "conv": ("conv1d", "conv2d", "conv3d", "convolution", "_convolution"),
    "deconv": ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    "linear": ("linear", "addmm"),
    "matmul": ("matmul", "mm", "bmm", "baddbmm", "einsum", "tensordot"),
    "pool": ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
             "adaptive_max_pool2d", "max_pool2d_with_indices"),
    "norm": ("batch_norm", "_native_batch_norm_legit_no_training"),
    "layernorm": ("layer_norm", "group_norm", "instance_norm", "native_layer_norm", "native_group_norm", "rms_norm"),
    "activation": ("relu", "leaky_relu", "hardtanh", "relu6", "clamp", "clamp_min", "sigmoid", "hardsigmoid",
                   "hardswish", "tanh", "gelu", "silu", "mish", "elu", "prelu", "softplus", "exp", "sqrt", "rsqrt"),
    "elementwise": ("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "where"),
    "concat": ("cat", "concat", "stack", "pad", "constant_pad_nd", "repeat"),
    "slice": ("slice", "split", "split_with_sizes", "chunk", "select", "index_select", "unbind", "narrow", "index"),
    "shuffle": ("permute", "transpose", "movedim", "t", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    "resize": ("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "_upsample_nearest_exact2d"),
    "reduce": ("mean", "sum", "amax", "amin", "max", "linalg_vector_norm", "norm", "argmax"),
    "softmax": ("softmax", "_softmax", "log_softmax", "topk"),
    "reshape": ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"),
}  # fmt: skip
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_FUNCTIONS = {
    "relu": "relu", "leaky_relu": "relu", "hardtanh": "relu", "relu6": "relu", "clamp": "relu", "clamp_min": "relu",
    "sigmoid": "sigmoid", "hardsigmoid": "hswish", "hardswish": "hswish", "tanh": "tanh", "gelu": "gelu",
    "silu": "swish", "mish": "swish",
}  # fmt: skip
_SILENT = frozenset(
    ("getitem", "dropout", "feature_dropout", "detach", "alias", "contiguous", "clone", "to", "_to_copy", "expand",
     "expand_as", "type_as", "lift_fresh_copy")
)  # fmt: skip
_FUSES = frozenset(
    ("relu", "leaky_relu", "hardtanh", "relu6", "clamp", "batch_norm", "_native_batch_norm_legit_no_training")
)
_PRODUCTS = ("conv", "deconv", "linear")


Dims = tuple[Factor, ...]


@dataclass(frozen=True)
class Step:
    """One operator whose sizes are those of dimensions of nodes: an `Operator` once they are given.

    Attributes:
        inputs, output: dimensions of the activations, one of which is the batch (or windows of it).
        batch: samples that were traced.
        weight: dimensions of the parameter of a convolution or linear layer.
        call: of the graph that it is, or is a part of.
        products: terms of the multiplications, of a product whose shapes do not tell them.
    """

    kind: str
    inputs: tuple[Dims, ...]
    output: Dims
    batch: int
    weight: Dims = ()
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1
    grouped: bool = False
    function: str = ""
    name: str = ""
    call: Node | None = None
    products: tuple[Term, ...] = ()

    @property
    def factors(self) -> Dims:
        """All dimensions whose sizes it asks for."""
        sizes = (*self.inputs, self.output, self.weight, *(term.factors for term in self.products))
        return tuple(factor for dims in sizes for factor in dims)

    def operator(self, size: Size = traced_size) -> Operator:
        """The operator at sizes, for one sample."""
        inputs = tuple(self._plane(dims, size) for dims in self.inputs) or ((1,),)
        output, weight = self._plane(self.output, size), [size(*factor) for factor in self.weight]
        products = sum(term.value(size) for term in self.products)
        return Operator(
            self.kind, inputs, output, self.kernel, self.stride, self.dilation,
            self._groups(inputs[0][0], output[0], weight), prod(weight) if weight else 0, self.function, self.name,
            round(products / self.batch),
        )  # fmt: skip

    def operators(self, size: Size = traced_size) -> list[Operator]:
        return [self.operator(size)]

    def _groups(self, ins: int, outs: int, weight: list[int]) -> int:
        """Groups of a convolution: each channel that goes takes its own one along, where it has one."""
        channels = outs if self.kind == "deconv" else ins
        return max(1, channels // max(weight[1], 1)) if self.grouped and weight else 1

    def _plane(self, dims: Dims, size: Size) -> Shape:
        """Sizes without the batch; a scalar counts as one channel, a 1-D convolution as one with a width of one."""
        sizes = [size(*factor) for factor in dims]
        at = next((place for place, each in enumerate(sizes) if each % self.batch == 0), 0)
        rest = sizes[at] // self.batch if sizes else 1
        found = (*sizes[:at], *([rest] if rest > 1 else []), *sizes[at + 1 :])
        if self.kind in CONVOLUTIONS and len(found) == 2:
            return (*found, 1)
        return found or (1,)


@dataclass(frozen=True)
class RoutedStep:
    """A mixture of experts, whose operators are as many as experts are left: tokens are found, multiplied and brought
    back for each of them; where no choice is left, all tokens go through all experts.

    Attributes:
        x: dimensions of the tokens. weight: of the stacked weights, (experts, hidden, width).
        products: linear layers of one expert but for the last.
        call: of the graph that it is.
    """

    x: Dims
    weight: Dims
    batch: int
    k: int
    products: int
    name: str = ""
    call: Node | None = None

    @property
    def factors(self) -> Dims:
        return self.x + self.weight

    def operators(self, size: Size = traced_size) -> list[Operator]:
        """The operators at sizes, for one sample."""
        tokens = prod(size(*factor) for factor in self.x[:-1]) // self.batch
        experts, hidden, width = (size(*factor) for factor in self.weight)
        if self.k >= experts:
            return self._expert(tokens, hidden, width) * experts
        rows = rows_of(tokens * self.k, experts)
        return (self._queue(tokens, rows, width) + self._expert(rows, hidden, width)) * experts

    def _expert(self, rows: int, hidden: int, width: int) -> list[Operator]:
        """Linear layers, activation, the product of gated experts, and the gate."""
        up, down = (rows, hidden), (rows, width)
        first = Operator("linear", (down,), up, weights=hidden * width, name=self.name)
        last = replace(first, inputs=(up,), output=down)
        gelu, product = self._plain("activation", up, "gelu"), self._plain("elementwise", up)
        gate = self._plain("elementwise", down)
        return [*[first] * self.products, gelu, *[product] * (self.products - 1), last, gate]

    def _queue(self, tokens: int, rows: int, width: int) -> list[Operator]:
        """Finding an expert's tokens and their gates, gathering both, and bringing the results back."""
        sizes: dict[str, list[Shape]] = {
            "elementwise": [(tokens, self.k)] * 2, "reduce": [(tokens, self.k)] * 2 + [(tokens,)], "shuffle": [(rows,)],
            "reshape": [(rows,)] * 3, "slice": [(rows, 1), (rows, width), (rows, width)],
        }  # fmt: skip
        return [self._plain(kind, shape) for kind, shapes in sizes.items() for shape in shapes]

    def _plain(self, kind: str, shape: Shape, function: str = "") -> Operator:
        return Operator(kind, (shape,), shape, function=function, name=self.name)


AnyStep = Step | RoutedStep


def operators_of(steps: Iterable[AnyStep], size: Size = traced_size) -> list[Operator]:
    """The operators of steps at sizes, for one sample."""
    return [operator for step in steps for operator in step.operators(size)]


def read_graph(graph: Graph) -> list[AnyStep]:
    """The operators of a graph in its order."""
    sample, again = per_sample(graph), _repeated(graph)
    calls = [node for node in graph.compute if node not in again and _runs(node, sample)]
    return [replace(step, call=node) for node in calls for step in _steps(node, sample)]


def _repeated(graph: Graph) -> set[Node]:
    """Calls that compute what an earlier one did, of the same operands; exporters and runtimes make one of them."""
    same: dict[Node, Node] = {}
    seen: dict[str, Node] = {}
    for node in graph.compute:
        operands = map_arg((node.args, node.kwargs), lambda each: same.get(each, each))
        first = seen.setdefault(f"{node.target} {operands}", node)
        if first is not node and not is_in_place(node):
            same[node] = first
    return set(same)


def _runs(node: Node, sample: PerSample) -> bool:
    """Whether a runtime executes a call for each sample, and on its own."""
    return node in sample.batched and op_name(node) not in _SILENT and not _fused(node) and not _gates(node)


def _fused(node: Node) -> bool:
    """Whether the operator before computes this one along."""
    if op_name(node) not in _FUSES:
        return False
    before = _first(node)
    while before is not None and op_name(before) in _FUSES and len(before.users) == 1:
        before = _first(before)
    alone = before is not None and len(node.all_input_nodes[0].users) == 1
    return alone and before is not None and _KIND_OF.get(op_name(before)) in _PRODUCTS


def _first(node: Node) -> Node | None:
    return node.all_input_nodes[0] if node.op == "call_function" and node.all_input_nodes else None


def _gates(node: Node) -> bool:
    """Whether this is the product in x * sigmoid(x), which is one activation."""
    return op_name(node) == "mul" and any(
        op_name(maker) in ("sigmoid", "hardsigmoid") and _first(maker) in node.all_input_nodes
        for maker in node.all_input_nodes
    )


def _steps(node: Node, sample: PerSample) -> Iterator[AnyStep]:
    given, output = arguments(node), _tensor(node)
    if output is None:
        return
    if op_name(node) in _SEVERAL:
        yield from _SEVERAL[op_name(node)](node, given, sample.batch)
        return
    inputs = tuple(each for each in node.all_input_nodes if each in sample.batched and shape(each))
    kind, weight = _kind(node, inputs), _weight(node, given, sample)
    if kind == "matmul" and weight is not None and weight is node.args[1] and len(shape(weight)) == 2:
        kind = "linear"
    plain = op_name(node) in ("matmul", "mm", "bmm") and len(inputs) == 2
    yield Step(
        kind, tuple(map(_dims, inputs)), _dims(output), sample.batch,
        _dims(weight) if weight is not None and kind in _PRODUCTS else (), _window(given, weight, kind),
        _largest(given.get("stride") or (given.get("kernel_size") if kind == "pool" else 1)),
        _largest(given.get("dilation")), int(given.get("groups") or 1) > 1, _function(node), module_path(node),
        products=tuple(mac_terms(node)) if kind == "matmul" and not plain else (),
    )  # fmt: skip


def _attention(node: Node, given: dict[str, Any], batch: int) -> Iterator[Step]:
    """query [..., q, d] · key [..., k, d] → scores [..., q, k] → softmax; scores · value [..., k, v]."""
    query, key, value = (_dims(given[each]) for each in ("query", "key", "value"))
    scores, place = (*query[:-1], key[-2]), module_path(node)
    yield Step("matmul", (query, key), scores, batch, name=place)
    yield Step("softmax", (scores,), scores, batch, name=place)
    yield Step("matmul", (scores, value), _dims(node), batch, name=place)


def _routed_experts(node: Node, given: dict[str, Any], batch: int) -> Iterator[RoutedStep]:
    yield RoutedStep(
        _dims(given["x"]), _dims(given["up"]), batch, given["k"], 2 if given.get("glu") is not None else 1,
        module_path(node),
    )  # fmt: skip


def _recurrent(node: Node, given: dict[str, Any], batch: int) -> Iterator[Step]:
    output = _tensor(node) or node
    yield Step(
        "linear", (_dims(given["input"]),), _dims(output), batch, name=module_path(node),
        products=tuple(mac_terms(node)),
    )  # fmt: skip


_SEVERAL: dict[str, Callable[..., Iterator[AnyStep]]] = {
    "scaled_dot_product_attention": _attention,
    "routed_experts": _routed_experts,
    **dict.fromkeys(RECURRENT + RECURRENT_CELLS, _recurrent),
}
"""Ops that a runtime executes as several operators, or whose weights are in a list."""


def _dims(node: Node) -> Dims:
    return tuple((node, dim) for dim in range(len(shape(node))))


def _tensor(node: Node) -> Node | None:
    """The node of a call's (first) result, which is picked from it where there are several."""
    if isinstance(node.meta.get("val"), Tensor):
        return node
    return next((user for user in node.users if op_name(user) == "getitem" and user.args[1] == 0), None)


def _kind(node: Node, inputs: tuple[Node, ...]) -> str:
    name = op_name(node)
    over_a_plane = inputs and len(shape(inputs[0])) > 2 and prod(shape(node)[2:]) == 1 < prod(shape(inputs[0])[2:])
    return "pool" if name == "mean" and over_a_plane else _KIND_OF.get(name, name)


def _weight(node: Node, given: dict[str, Any], sample: PerSample) -> Node | None:
    """The parameter of a product: an operand that does not grow with the batch."""
    if "weight" in given:
        return given["weight"] if isinstance(given["weight"], Node) else None
    others = [each for each in node.all_input_nodes if each not in sample.batched and len(shape(each)) >= 2]
    return others[0] if others else None


def _window(given: dict[str, Any], weight: Node | None, kind: str) -> tuple[int, int]:
    sizes = list(shape(weight)[2:]) if weight is not None and kind in CONVOLUTIONS else given.get("kernel_size") or [1]
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if len(sizes) > 2:
        return prod(sizes[:-1]), sizes[-1]
    return sizes[0], sizes[-1] if len(sizes) > 1 or kind == "pool" else 1


def _largest(value: Any) -> int:
    return max(value, default=1) if isinstance(value, (list, tuple)) else int(value or 1)


def _function(node: Node) -> str:
    """Of an activation; x * sigmoid(x) is one of its own."""
    gate = op_name(node) == "sigmoid" and any(node in user.all_input_nodes and _gates(user) for user in node.users)
    return "swish" if gate else _FUNCTIONS.get(op_name(node), "")
