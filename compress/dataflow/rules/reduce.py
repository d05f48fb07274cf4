"""Reductions: the reduced dimensions end, the others move up."""

from __future__ import annotations

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
    labels, ndim = op.labels("self"), len(op.shape_of("self"))
    dims = op.args.get("dim")
    listed = range(ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    reduced = {int(dim) % max(ndim, 1) for dim in listed}
    keepdim = bool(op.args.get("keepdim", False))
    result = {
        dim if keepdim else dim - sum(gone < dim for gone in reduced): channels
        for dim, channels in labels.items()
        if dim not in reduced
    }
    return [result] * op.returns if op.returns > 1 else result


@rule("argmax", "argmin", "topk", "sort", "argsort")
def positions(op: Op) -> Labels | list[Labels]:
    """The result holds positions along a dimension, which therefore may not change."""
    labels = op.labels("self")
    for channels in labels.values():
        op.fix(channels, "positions are picked")
    return [{}] * op.returns if op.returns > 1 else {}
