"""Multiply-accumulates of one op, as products of tensor sizes.

    conv2d   kh·kw · |output| · weight.size(1)
    linear   |output| · weight.size(-1)

An op's MACs are a sum of terms, each a constant times the sizes of some tensor dimensions. In this form they can be
evaluated for the sizes as they are, or for the sizes that the tensors would have with some channels removed.

Convention, as in torch's FlopCounterMode: convolutions (transposed ones too) and matrix products count, padding is
counted as if it were data, attention is not halved for causal masks. Biases, normalisation, activations, pooling,
interpolation and everything else count nothing; `secateur.profiles.count` lists what it met of those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from secateur.profiles.graph import op_name, shape

Factor = tuple[Node, int]
"""The size of one dimension (counted from 0) of one tensor."""

Size = Callable[[Node, int], int]

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
RECURRENT_CELLS = tuple(f"{layer}_cell" for layer in RECURRENT)


@dataclass(frozen=True)
class Term:
    """`constant` times the product of the sizes of `factors`."""

    constant: int
    factors: tuple[Factor, ...]

    def value(self, size: Size) -> int:
        return self.constant * prod(size(node, dim) for node, dim in self.factors)


def traced_size(node: Node, dim: int) -> int:
    """The size that the tensor had when the model was traced."""
    return shape(node)[dim]


def node_macs(node: Node, size: Size = traced_size) -> int:
    """Multiply-accumulates of one call, for the whole batch, with tensor sizes as `size` tells them."""
    return sum(term.value(size) for term in mac_terms(node))


def mac_terms(node: Node) -> list[Term]:
    """The terms whose sum is the op's MACs; none for an op that counts nothing.

    The terms stay right when channels are removed: a depthwise convolution's weight has one input channel before and
    after, a grouped one's has the channels of one group.
    """
    rule = RULES.get(op_name(node))
    return rule(node, arguments(node)) if rule else []


def arguments(node: Node) -> dict[str, Any]:
    """The call's arguments by their names in the op's schema; those left at their defaults are absent."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    names = (argument.name for argument in node.target._schema.arguments)
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _dims(node: Node) -> tuple[Factor, ...]:
    return tuple((node, dim) for dim in range(len(shape(node))))


def _dim(node: Node, dim: int) -> Factor:
    return node, dim % len(shape(node))


def _convolution(node: Node, given: dict[str, Any]) -> list[Term]:
    """Each output element reads a window of the weight's input channels."""
    if given.get("transposed"):
        return _transposed_convolution(node, given)
    weight = given["weight"]
    return [Term(prod(shape(weight)[2:]), (*_dims(node), (weight, 1)))]


def _transposed_convolution(node: Node, given: dict[str, Any]) -> list[Term]:
    """Each input element is spread over a window of the weight's output channels."""
    weight = given["weight"]
    return [Term(prod(shape(weight)[2:]), (*_dims(given["input"]), (weight, 1)))]


def _linear(node: Node, given: dict[str, Any]) -> list[Term]:
    return [Term(1, (*_dims(node), _dim(given["weight"], -1)))]


def _product(left: str) -> Callable[[Node, dict[str, Any]], list[Term]]:
    """A matrix product whose left operand is the argument of that name; broadcasting shows in the output."""
    return lambda node, given: [Term(1, (*_dims(node), _dim(given[left], -1)))]


def _attention(node: Node, given: dict[str, Any]) -> list[Term]:
    """query [..., heads, q, d] · key [..., k, d] → scores [..., heads, q, k]; scores · value [..., k, v]."""
    query, keys, width = given["query"], _dim(given["key"], -2), _dim(given["value"], -1)
    return [Term(1, (*_dims(query), keys)), Term(1, (*_dims(query)[:-1], keys, width))]


def _routed_experts(node: Node, given: dict[str, Any]) -> list[Term]:
    """Every token goes through k experts of two matrix products each, three if they are gated."""
    products = 3 if given.get("glu") is not None else 2
    chosen = min(given["k"], shape(given["up"])[0])
    return [Term(products * chosen, (*_dims(given["x"]), (given["up"], 1)))]


def _recurrent(node: Node, given: dict[str, Any]) -> list[Term]:
    """Every step multiplies by every weight matrix: [N, steps, inputs], or [steps, N, inputs]."""
    x = given["input"]
    matrices = [weight for weight in given["params"] if len(shape(weight)) == 2]
    return [Term(1, (*_dims(x)[:-1], (weight, 0), (weight, 1))) for weight in matrices]


def _recurrent_cell(node: Node, given: dict[str, Any]) -> list[Term]:
    return [Term(1, (*_dims(given["input"])[:-1], (w, 0), (w, 1))) for w in (given["w_ih"], given["w_hh"])]


def _tensordot(node: Node, given: dict[str, Any]) -> list[Term]:
    return [Term(1, (*_dims(node), *(_dim(given["self"], dim) for dim in given["dims_self"])))]


def _einsum(node: Node, given: dict[str, Any]) -> list[Term]:
    """Two operands that share a summed label make a matrix product; anything else counts nothing."""
    operands = given["tensors"]
    if len(operands) != 2:
        return []
    inputs, arrow, result = given["equation"].replace(" ", "").partition("->")
    left, right = (_labelled(operand, part) for operand, part in zip(operands, inputs.split(","), strict=True))
    kept = set(_labelled(node, result)) if arrow else left.keys() ^ right.keys() | set(filter(str.isdigit, left))
    summed = [max(left[label], right[label], key=_traced) for label in left.keys() & right.keys() - kept]
    return [Term(1, (*_dims(node), *summed))] if summed else []


def _labelled(operand: Node, labels: str) -> dict[str, Factor]:
    """The dimension that each letter names; those of an ellipsis are named by their place before its end."""
    before, _, after = labels.partition("...")
    between = len(shape(operand)) - len(before) - len(after)
    names = [*before, *(str(place) for place in range(between, 0, -1)), *after]
    return {name: (operand, dim) for dim, name in enumerate(names)}


def _traced(factor: Factor) -> int:
    return traced_size(*factor)


RULES: dict[str, Callable[[Node, dict[str, Any]], list[Term]]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _product("self")),
    "addmm": _product("mat1"),
    "baddbmm": _product("batch1"),
    "tensordot": _tensordot,
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(RECURRENT_CELLS, _recurrent_cell),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "routed_experts": _routed_experts,
}
"""Name of the op → its MACs."""
