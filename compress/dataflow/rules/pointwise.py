"""Ops that work element by element: their operands' dimensions are the same channels, with broadcasting."""

from __future__ import annotations

from secateur.compress.dataflow.rules.registry import Labels, Op, rule
from secateur.compress.dataflow.space import Channels
from secateur.profiles.graph import FILLED


@rule(
    "pointwise", "contiguous", "clone", "to", "_to_copy", "alias", "detach", "detach_", "lift_fresh_copy", "dropout",
    "feature_dropout", "alpha_dropout", "native_dropout", "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid",
    "silu", "mish", "gelu", "elu", "selu", "celu", "leaky_relu", "softplus", "logsigmoid", "log_sigmoid", "rrelu",
    "masked_fill", "where", "zeros_like", "ones_like", "full_like", "type_as", "float", "half", "square", "clamp",
    "clamp_min", "clamp_max", "addcmul", "addcdiv", "fill", "zero", "copy", "softshrink", "hardshrink", "threshold",
    "randn_like", "rand_like", "real", "imag", "conj", "resolve_conj", "resolve_neg", "__and__", "__or__", "__xor__",
)  # fmt: skip
def pointwise(op: Op) -> Labels:
    """Operands are aligned at their last dimension; what spans the result's size is tied."""
    result: Labels = {}
    for dim, size in enumerate(op.shape):
        label = _tie_dimension(op, dim, size)
        if label is not None:
            result[dim] = label
    return result


def _tie_dimension(op: Op, dim: int, size: int) -> Channels | None:
    spanning = []
    for node in op.tensors:
        own = dim - (len(op.shape) - len(op.shape_of(node)))
        if own < 0:
            continue
        label = op.labels(node).get(own)
        if label is None and op.is_spread(node, own):
            continue
        if op.shape_of(node)[own] == size:
            spanning.append(label)
        else:
            op.fix(label, "broadcast from a single channel")
    labels = [label for label in spanning if label is not None]
    if len(labels) < len(spanning):
        for label in labels:
            op.fix(label, "meets a tensor of fixed size")
        return None
    for other in labels[1:]:
        op.space.tie(labels[0], other)
    return labels[0] if labels else None


@rule("prelu")
def prelu(op: Op) -> Labels:
    """The slope [C] belongs to dimension 1."""
    labels = op.labels("self")
    slope = op.labels("weight").get(0)
    if slope is not None:
        op.tie(slope, labels.get(1))
    return labels


@rule(*FILLED)
def filled(op: Op) -> Labels:
    """A tensor of one value, the first state of a cell, say, has any channels: its size follows what the code takes it
    from, or a trial cut finds that it does not."""
    kind = op.node.meta["val"].dtype
    if not (kind.is_floating_point or kind.is_complex):
        return {}
    return {dim: op.space.fresh(size) for dim, size in enumerate(op.shape) if size > 1}


@rule(
    "new_empty", "sym_size", "sym_numel", "_assert_tensor_metadata", "size", "is_floating_point", "dim", "numel",
)  # fmt: skip
def sizes_only(op: Op) -> Labels:
    """The operand gives its type, place or size, no values."""
    return {}
