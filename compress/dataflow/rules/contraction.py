"""Ops that consume one group of channels and produce another: convolutions, linear layers, matrix products."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from secateur.compress.dataflow.rules.registry import Labels, Op, rule
from secateur.compress.dataflow.space import Channels
from secateur.profiles.graph import op_name

_TURNING = frozenset(("t", "numpy_T", "mT", "transpose", "permute", "movedim"))
"""Ops after which a parameter still is one, in another order."""


@rule("conv1d", "conv2d", "conv3d")
def convolution(op: Op) -> Labels:
    """Input [N, I, *], weight [O, I/groups, *k] → [N, O, *]. Along a dimension where the kernel is a single point, what
    the convolution does is done to every place alike."""
    x, weight, groups = op.labels("self"), op.labels("weight"), int(op["groups"])
    pointwise = _pointwise_dims(op)
    _fix_all_but(op, x, (0, 1, *pointwise), "convolved dimension")
    _fix_all_but(op, weight, (0, 1), "kernel size")
    produced = weight.get(0)
    op.weight("weight", makes=[0], reads=[1])
    if produced is None and groups == op.shape[1] and op.is_spread("weight", 0):
        produced = x.get(1)  # one kernel for all channels, as a blur has
    _tie_bias(op, produced)
    if groups == 1:
        op.tie(x.get(1), weight.get(1))
    else:
        _grouped(op, x.get(1), weight.get(1), produced, groups)
    passing = {dim: x[dim] for dim in (0, *pointwise) if dim in x}
    return passing | ({1: produced} if produced is not None else {})


def _pointwise_dims(op: Op) -> list[int]:
    """Dimensions that a convolution neither mixes nor resizes."""
    kernel, before = op.shape_of("weight"), op.shape_of("self")
    if any(step != 1 for step in op["stride"]):
        return []
    return [dim for dim in range(2, len(kernel)) if kernel[dim] == 1 and op.shape[dim] == before[dim]]


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(op: Op) -> Labels:
    """Input [N, I, *], weight [I, O/groups, *k] → [N, O, *]."""
    x, weight, groups = op.labels("self"), op.labels("weight"), int(op["groups"])
    _fix_all_but(op, x, (0, 1), "convolved dimension")
    _fix_all_but(op, weight, (0, 1), "kernel size")
    op.weight("weight", makes=[1], reads=[0])
    op.tie(x.get(1), weight.get(0))
    produced = weight.get(1) if groups == 1 else _grouped_transposed(op, x.get(1), weight.get(1), groups)
    _tie_bias(op, produced)
    return _batch(x) | ({1: produced} if produced is not None else {})


def _grouped_transposed(op: Op, x: Channels | None, inner: Channels | None, groups: int) -> Channels | None:
    """Depthwise: output channels follow their input channel. Grouped: every group keeps the same channels."""
    if x is not None and len(x) == groups:
        op.fix(inner, "several outputs of one channel")
        return np.repeat(x, op.shape[1] // groups)
    if x is not None:
        op.space.tie_rows(x, groups)
    return None if inner is None else np.tile(inner, groups)


def _grouped(op: Op, x: Channels | None, inner: Channels | None, produced: Channels | None, groups: int) -> None:
    """Depthwise: output channels follow their input channel. Grouped: every group keeps the same channels."""
    if x is None or produced is None:
        for channels in (x, inner, produced):
            op.fix(channels, "grouped convolution over a tensor of fixed size")
        return
    if len(x) == groups:
        op.space.tie(x[:, None], produced.reshape(groups, -1))
        return
    op.tie(op.space.tie_rows(x, groups), inner)
    op.space.tie_rows(produced, groups)


@rule("linear")
def linear(op: Op) -> Labels:
    """Input [*, I], weight [O, I] → [*, O]."""
    x, weight = op.labels("self"), op.labels("weight")
    last = len(op.shape_of("self")) - 1
    op.weight("weight", makes=[0], reads=[1])
    op.tie(x.get(last), weight.get(1))
    _tie_bias(op, weight.get(0))
    produced = {last: weight[0]} if 0 in weight else {}
    return {dim: channels for dim, channels in x.items() if dim != last} | produced


@rule("matmul", "mm", "bmm")
def matmul(op: Op) -> Labels:
    """[*, M, K] @ [*, K, N] → [*, M, N]; batch dimensions broadcast. Vectors are left to the refusal of unknown ops."""
    left, right = op.node.args[:2]
    return _product(op, left, right)  # type: ignore[arg-type]


@rule("mv", "dot", "vdot", "inner")
def with_vector(op: Op) -> Labels:
    """[*, K] and a vector [K] → [*]."""
    left, right = op.tensors
    last = len(op.shape_of(left)) - 1
    if len(op.shape_of(right)) != 1:
        return refuse(op)
    op.tie(op.labels(left).get(last), op.labels(right).get(0))
    return {dim: channels for dim, channels in op.labels(left).items() if dim != last}


@rule("outer", "ger")
def outer(op: Op) -> Labels:
    """[M], [N] → [M, N]."""
    return {place: op.labels(node)[0] for place, node in enumerate(op.node.args[:2]) if 0 in op.labels(node)}  # type: ignore[arg-type]


@rule("tensordot")
def tensordot(op: Op) -> Labels:
    """The listed dimensions are contracted; those of the first operand that are left stand before the second's."""
    result, place = Labels(), 0
    sides = [(name, [int(dim) % len(op.shape_of(name)) for dim in op[f"dims_{name}"]]) for name in ("self", "other")]
    for one, other in zip(*(dims for _, dims in sides), strict=True):
        op.tie(op.labels("self").get(one), op.labels("other").get(other))
    for name, contracted in sides:
        left = [dim for dim in range(len(op.shape_of(name))) if dim not in contracted]
        if _is_parameter(op[name]):
            op.weight(name, makes=left, reads=contracted)
        result |= {place + at: op.labels(name)[dim] for at, dim in enumerate(left) if dim in op.labels(name)}
        place += len(left)
    return result


@rule("addmm", "baddbmm")
def addmm(op: Op) -> Labels:
    """bias + left @ right."""
    added, left, right = op.node.args[:3]
    result = _product(op, left, right)  # type: ignore[arg-type]
    offset = len(op.shape) - len(op.shape_of(added))  # type: ignore[arg-type]
    for dim, channels in op.labels(added).items():  # type: ignore[arg-type]
        op.tie(channels, result.get(dim + offset))
    return result


def _product(op: Op, left: Node, right: Node) -> Labels:
    a, b = op.labels(left), op.labels(right)
    a_ndim, b_ndim = len(op.shape_of(left)), len(op.shape_of(right))
    if a_ndim < 2 or b_ndim < 2:
        return refuse(op)
    op.tie(a.get(a_ndim - 1), b.get(b_ndim - 2))
    if _is_parameter(left):
        op.weight(left, makes=[a_ndim - 2], reads=[a_ndim - 1])
    if _is_parameter(right):
        op.weight(right, makes=[b_ndim - 1], reads=[b_ndim - 2])
    result: Labels = {}
    for labels, ndim, kept in ((a, a_ndim, a_ndim - 2), (b, b_ndim, b_ndim - 1)):
        if kept in labels:
            result[len(op.shape) + kept - ndim] = labels[kept]
    for dim in range(len(op.shape) - 2):
        sides = [
            (labels.get(own), op.shape_of(node)[own])
            for node, labels in ((left, a), (right, b))
            if (own := dim - len(op.shape) + len(op.shape_of(node))) >= 0
        ]
        spanning = [channels for channels, size in sides if size == op.shape[dim]]
        if len(spanning) > 1:
            op.tie(spanning[0], spanning[1])
        if all(channels is not None for channels in spanning):
            result[dim] = spanning[0]  # type: ignore[assignment]
    return result


def _is_parameter(node: Node) -> bool:
    """Whether a matrix is a parameter, perhaps in another order of its dimensions, rather than a result."""
    while op_name(node) in _TURNING:
        node = node.all_input_nodes[0]
    return not node.all_input_nodes


@rule("scaled_dot_product_attention", counting=True)
def attention(op: Op) -> Labels:
    """Query [*, H, L, E], key [*, H, S, E], value [*, H, S, V] → [*, H, L, V]. Of grouped queries, several heads share
    one of key and value."""
    query, key, value, mask = (op.labels(name) for name in ("query", "key", "value", "attn_mask"))
    last = len(op.shape) - 1
    op.tie(query.get(last), key.get(last))
    op.tie(key.get(last - 1), value.get(last - 1))
    result: Labels = {last: value[last]} if last in value else {}
    for dim in range(last - 1):
        op.tie(key.get(dim), value.get(dim))
        shared = op.shape[dim] // max(op.shape_of("key")[dim], 1)
        keys = key.get(dim)
        op.tie(query.get(dim), keys if keys is None or shared < 2 else np.repeat(keys, shared))
        if dim in query:
            result[dim] = query[dim]
    _mask_scores(op, mask, query)
    return result


def _mask_scores(op: Op, mask: Labels, query: Labels) -> None:
    """The mask's leading dimensions are those of the scores, its last two are positions."""
    offset = len(op.shape) - (len(op.shape_of("attn_mask")) or len(op.shape))
    for dim, channels in mask.items():
        if dim + offset < len(op.shape) - 2:
            op.tie(channels, query.get(dim + offset))
        else:
            op.fix(channels, "attention mask")
    positions = len(op.shape) - 2
    for dim, channels in query.items():
        unlabelled = dim < positions and dim >= offset and op.shape_of("attn_mask")[dim - offset : dim - offset + 1]
        if unlabelled and unlabelled[0] == op.shape[dim] > 1 and dim - offset not in mask:
            op.fix(channels, "attention mask of fixed size")


@rule("einsum")
def einsum(op: Op) -> Labels:
    """Dimensions that share a letter are the same channels."""
    inputs, arrow, result = str(op["equation"]).replace(" ", "").partition("->")
    if not arrow:
        return refuse(op)
    operands = [
        (node, _spelt_out(letters, len(op.shape_of(node))))
        for node, letters in zip(op["tensors"], inputs.split(","), strict=True)
    ]
    result = _spelt_out(result, len(op.shape))
    found: dict[str, Channels | None] = {}
    for node, letters in operands:
        for dim, letter in enumerate(letters):
            channels, size = op.labels(node).get(dim), op.shape_of(node)[dim]
            if size < 2:
                continue
            if letter in found:
                op.tie(found[letter], channels)
            found[letter] = channels if found.get(letter, channels) is not None else None
    _einsum_weights(op, operands, result)
    return {dim: channels for dim, letter in enumerate(result) if (channels := found.get(letter)) is not None}


def _einsum_weights(op: Op, operands: list[tuple[Node, str]], result: str) -> None:
    """A parameter makes what only it and the result have, and reads what it shares with another operand."""
    for node, letters in operands:
        others = {letter for other, own in operands if other is not node for letter in own}
        if _is_parameter(node):
            makes = [dim for dim, letter in enumerate(letters) if letter in result and letter not in others]
            reads = [dim for dim, letter in enumerate(letters) if letter in others and letter not in result]
            op.weight(node, makes=makes, reads=reads)


def _spelt_out(letters: str, ndim: int) -> str:
    """A letter for each dimension: those under an ellipsis are numbered from the right, as they are broadcast."""
    hidden = ndim - len(letters.replace("...", ""))
    return letters.replace("...", "".join(chr(ord("0") + place) for place in reversed(range(hidden))))


@rule("embedding")
def embedding(op: Op) -> Labels:
    """Indices [*], weight [V, D] → [*, D]."""
    weight = op.labels("weight")
    op.fix(weight.get(0), "vocabulary")
    op.weight("weight", makes=[1])
    return {len(op.shape) - 1: weight[1]} if 1 in weight else {}


def refuse(op: Op) -> Labels:
    """What happens to an op without a rule: nothing that reaches it may be cut."""
    for node in op.tensors:
        for channels in op.labels(node).values():
            op.space.fix(channels, f"no rule for the op {op.where}")
    return {}


def _tie_bias(op: Op, produced: Channels | None) -> None:
    bias = op.labels("bias").get(0)
    if bias is not None:
        op.tie(bias, produced)


def _batch(labels: Labels) -> Labels:
    return {0: labels[0]} if 0 in labels else {}


def _fix_all_but(op: Op, labels: Labels, dims: tuple[int, ...], why: str) -> None:
    for dim, channels in labels.items():
        if dim not in dims:
            op.fix(channels, why)
