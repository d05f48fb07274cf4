"""Memory and traffic of a traced model's activations, from which tensors are alive when.

Calls run in traced order, without fusion. A call's result takes memory of its own unless it is a view or is written in
place; it is freed after its last use. That is what eager PyTorch does, and an upper bound for runtimes that fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch.fx import Node

from secateur.profiles.graph import VIEWS, Graph, is_in_place, op_name
from secateur.profiles.macs import arguments

Bytes = Callable[[Node], int]
"""Bytes of the tensor that a node stands for."""

DROPOUT = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def tensor_bytes(node: Node) -> int:
    """Bytes of the tensor as traced; 0 for a node that is not a tensor."""
    return _bytes(node.meta.get("val"))


def peak_activation_bytes(graph: Graph, bytes_of: Bytes = tensor_bytes) -> int:
    """The largest sum of bytes of activations that exist at one time; weights are not among them.

    While a call runs, its operands and its result both exist. The model's inputs exist from the start to their last
    use, its outputs until the end. `bytes_of` may tell other sizes than those traced, with channels removed, say; it is
    asked for single tensors only.
    """
    ending: dict[int, list[Node]] = {}
    for root, step in _last_uses(graph).items():
        ending.setdefault(step, []).append(root)
    alive = peak = sum(bytes_of(node) for node in graph.inputs)
    for step, node in enumerate(graph.compute):
        if not is_view(node) and not is_in_place(node):
            alive += allocated_bytes(node, bytes_of)
        peak = max(peak, alive)
        alive -= sum(allocated_bytes(root, bytes_of) for root in ending.get(step, ()))
    return peak


def moved_bytes(node: Node, bytes_of: Bytes = tensor_bytes) -> int:
    """Bytes that a call moves when it reads each operand once, weights included, and writes its result once.

    Views move nothing. Of an operand that a view has broadcast, only the memory behind it is read.
    """
    if is_view(node):
        return 0
    read = sum(min(bytes_of(used), allocated_bytes(storage(used), bytes_of)) for used in node.all_input_nodes)
    return read + allocated_bytes(node, bytes_of)


def allocated_bytes(node: Node, bytes_of: Bytes) -> int:
    """Bytes of all the tensors that a call returns, whether they are picked by a later node or not."""
    value = node.meta.get("val")
    if not isinstance(value, (tuple, list)):
        return bytes_of(node)
    picked = {user.args[1]: user for user in node.users if op_name(user) == "getitem"}
    return sum(bytes_of(picked[index]) if index in picked else _bytes(item) for index, item in enumerate(value))


def is_view(node: Node) -> bool:
    """Whether a call's result is the memory of its operand, untouched; so it is for dropout outside training."""
    return op_name(node) in VIEWS or (op_name(node) in DROPOUT and arguments(node).get("train") is False)


def storage(node: Node) -> Node:
    """The node whose call allocated the memory that this one's tensor lies in."""
    while node.op == "call_function" and (is_view(node) or is_in_place(node)):
        node = node.all_input_nodes[0]
    return node


def _last_uses(graph: Graph) -> Mapping[Node, int]:
    """Index of the last call that uses each piece of memory, for those that end before the outputs do."""
    last: dict[Node, int] = {}
    for step, node in enumerate(graph.compute):
        last.update(dict.fromkeys((storage(used) for used in (node, *node.all_input_nodes)), step))
    for node in _kept(graph):
        last.pop(node, None)
    return last


def _kept(graph: Graph) -> Iterable[Node]:
    return (*graph.state, *graph.constants, *map(storage, graph.outputs))


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
