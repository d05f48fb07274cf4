"""Reductions: the reduced dimensions end, the others move up."""

from __future__ import annotations

from torch.fx import Node

from secateur.compress.dataflow.rules.contraction import refuse
from secateur.compress.dataflow.rules.pointwise import pointwise
from secateur.compress.dataflow.rules.registry import Labels, Op, rule


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "norm",
    "linalg_vector_norm", "any", "all",
)  # fmt: skip
def reduction(op: Op) -> Labels | list[Labels]:
    """`dim` may be one dimension, several, or none (all of them). Some overloads return (values, indices)."""
    if len(op.tensors) > 1:  # max(a, b) of two tensors is pointwise
        return pointwise(op)
    return _without(op, _reduced(op))


@rule("argmax", "argmin", "median", "nanmedian", "mode", "kthvalue", "quantile", "nanquantile")
def pick(op: Op) -> Labels | list[Labels]:
    """One value of a dimension, or its position: the dimension may not change."""
    if isinstance(op.args.get("q"), Node):  # perhaps several quantiles, in a dimension of their own
        return refuse(op)
    reduced = _reduced(op)
    for dim in reduced:
        op.fix(op.labels("self").get(dim), "positions are picked")
    return _without(op, reduced)


def _reduced(op: Op) -> set[int]:
    """The dimensions that end."""
    dims, ndim = op.args.get("dim"), len(op.shape_of("self"))
    listed = range(ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return {int(dim) % max(ndim, 1) for dim in listed}


def _without(op: Op, reduced: set[int]) -> Labels | list[Labels]:
    """The labels that are left, of every result."""
    keepdim = bool(op.args.get("keepdim", False))
    result = {
        dim if keepdim else dim - sum(gone < dim for gone in reduced): channels
        for dim, channels in op.labels("self").items()
        if dim not in reduced
    }
    return [result] * op.returns if op.returns > 1 else result
