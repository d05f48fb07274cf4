"""A program from a traced model: its products in the order of the graph, its mixtures by a routing table.

Linear layers are stages as they are; a convolution is a linear layer over its windows, whose features are read once;
attention and other products of two activations load no weights. Everything else (norms, activations, additions,
resizing) is taken to happen while a stage reads or writes, as the published kernels do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from torch.fx import Node

from secateur.core.errors import DeviceError
from secateur.profiles.graph import Graph, module_path, op_name, shape
from secateur.profiles.macs import arguments, node_macs
from secateur.targets.edge_moe.board import Board
from secateur.targets.edge_moe.program import Program, Stage, attention, expert_bytes, linear, routed_stages

Table = Mapping[str, Sequence[Sequence[int]]]
"""Path of a mixture → for each token of one sample, the experts that it goes through."""


def traced_program(board: Board, graph: Graph, table: Table) -> Program:
    """The program of one inference of a model that was traced with one sample.

    Raises:
        DeviceError: there is no mixture, or the table does not fit it.
    """
    routed = [node for node in graph.compute if op_name(node) == "routed_experts"]
    if not routed:
        raise DeviceError(f"{board.name} works expert by expert, and the model has no experts", "choose another target")
    stages = tuple(stage for node in graph.compute for stage in _stages(board, node, table))
    tokens, width = max(_tokens_and_width(node) for node in routed)
    return Program(stages, tokens, width, tuple(_mixture(board, node) for node in routed))


def _stages(board: Board, node: Node, table: Table) -> Iterator[Stage]:
    op, given, name = op_name(node), arguments(node), module_path(node)
    if op == "routed_experts":
        yield from _experts(board, node, given, table)
    elif op in ("linear", "addmm"):
        *_, inputs = shape(given["input" if op == "linear" else "mat1"])
        *rows, outputs = shape(node)
        yield linear(board, name, prod(rows), inputs, outputs)
    elif op in _CONVOLUTIONS:
        yield from _convolution(board, node, given, name)
    elif op == "scaled_dot_product_attention":
        *batch, queries, _ = shape(given["query"])
        *_, keys, width = shape(given["value"])
        yield from attention(board, name, queries, keys, prod(batch), prod(batch) * width)
    elif macs := node_macs(node):
        yield _product(board, node, name, macs)


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "_convolution",
                 "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")  # fmt: skip


def _convolution(board: Board, node: Node, given: Mapping[str, Any], name: str) -> Iterator[Stage]:
    """Each group a linear layer over the windows of its input; a transposed one spreads each input over a window."""
    outputs, inputs, *window = shape(given["weight"])
    groups, read = int(given.get("groups", 1)), shape(given["input"])
    if given.get("transposed") or "transpose" in op_name(node):
        positions, ins, outs = prod(read[2:]), outputs // groups, inputs * prod(window)
    else:
        positions, ins, outs = prod(shape(node)[2:]), inputs * prod(window), outputs // groups
    for _ in range(groups):
        yield linear(board, name, positions, ins, outs, prod(read) // groups)


def _product(board: Board, node: Node, name: str, macs: int) -> Stage:
    """A product of two activations: a tile a cycle, unless the bus is slower; both operands come from DRAM."""
    elements = sum(prod(shape(operand)) for operand in (node, *node.all_input_nodes))
    words = -(-elements // board.features_per_word)
    busiest = max(-(-macs // (board.linear_in * board.linear_out)), words)
    moved = elements * board.feature_bits // 8
    return Stage(name, board.initiation * busiest + board.stage_overhead, feature_bytes=moved, macs=macs)


def _experts(board: Board, node: Node, given: Mapping[str, Any], table: Table) -> Iterator[Stage]:
    path = module_path(node)
    tokens, width = _tokens_and_width(node)
    chosen = table.get(path)
    if chosen is None or len(chosen) != tokens:
        found = "none" if chosen is None else f"one of {len(chosen)} tokens"
        raise DeviceError(
            f"the mixture {path} runs on {tokens} tokens, and its routing table is {found}", "measure routing again"
        )
    yield from routed_stages(board, path, width, shape(given["up"])[1], chosen, given.get("glu") is not None)


def _mixture(board: Board, node: Node) -> tuple[int, int]:
    given = arguments(node)
    experts, hidden, width = shape(given["up"])
    return experts, expert_bytes(board, width, hidden, given.get("glu") is not None)


def _tokens_and_width(node: Node) -> tuple[int, int]:
    *rows, width = shape(arguments(node)["x"])
    return prod(rows), width
