"""How many tokens an expert gets, where a file leaves that open: an equal share, rows = tokens · k / experts.

A mixture of experts in an ONNX file finds each expert's tokens by `NonZero`, whose size depends on the data. For a
prediction its size is taken to be the mean over experts, to which M³ViT's balance loss trains the routers.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any


def rows_of(choices: int, experts: int) -> int:
    """Tokens of one expert, of so many choices that all tokens make together."""
    return max(1, ceil(choices / experts))


def with_routed_rows(model: Any) -> Any:
    """An ONNX model with inferred shapes, in which experts' tokens have sizes too; as it is where it routes none."""
    import onnx

    sources = {node.output[0]: _choices(model, node) for node in model.graph.node if node.op_type == "NonZero"}
    found = {name: source for name, source in sources.items() if source is not None}
    if not found:
        return model
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    for name, source in found.items():
        choices = prod(dim.dim_value for dim in shapes[source].dim)
        if choices and name in shapes:
            shapes[name].dim[-1].dim_value = rows_of(choices, list(found.values()).count(source))
    known = [value for value in model.graph.value_info if all(d.dim_value for d in value.type.tensor_type.shape.dim)]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _choices(model: Any, node: Any) -> str | None:
    """The value that holds all tokens' choices, of which a `NonZero` picks those of one expert."""
    maker = {name: each for each in model.graph.node for name in each.output}
    while node is not None and node.op_type in ("NonZero", "Cast", "ReduceMax", "Equal"):
        if node.op_type == "Equal":
            return next((name for name in node.input if name in maker and maker[name].op_type == "TopK"), None)
        node = maker.get(node.input[0])
    return None
