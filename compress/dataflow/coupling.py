"""Modules whose code takes the width inside from the width outside.

    b, n, c = x.shape
    qkv = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads)

Heads cannot be cut there unless the channels of x are cut along. The graph does not show it; when a trial cut fails in
such a module, the two widths are tied, for all modules of its class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.fx import Node

from secateur.compress.dataflow.space import Channels, Space
from secateur.profiles.graph import Graph, module_path, op_name

_SPLITS = frozenset(("view", "reshape", "unflatten", "flatten", "_unsafe_view"))


def couple(
    space: Space, model: nn.Module, graphs: Iterable[Graph], labels: Mapping[Node, Any], coupled: Collection[type]
) -> None:
    """Tie, in every module of the given classes, what is split into heads to everything of the same size."""
    if not coupled:
        return
    paths = [path for path, module in model.named_modules() if type(module) in coupled]
    for graph in graphs:
        for path in paths:
            _couple(space, path, graph, labels)


def splits(graphs: Iterable[Graph], labels: Mapping[Node, Any], space: Space) -> frozenset[str]:
    """Paths of the modules whose own code merges several labelled dimensions into one."""
    return frozenset(module_path(node) for graph in graphs for node, _ in _products(space, graph, labels))


def _couple(space: Space, path: str, graph: Graph, labels: Mapping[Node, Any]) -> None:
    products = {
        len(channels): channels for node, channels in _products(space, graph, labels) if module_path(node) == path
    }
    for node in graph.nodes:
        if not _within(node, path):
            continue
        for used in (*node.all_input_nodes, node):
            if module_path(used) == path or not _within(used, path):
                found = labels.get(used, {})
                for channels in found.values() if isinstance(found, dict) else ():
                    if len(channels) in products:
                        space.tie(products[len(channels)], channels)


def _products(space: Space, graph: Graph, labels: Mapping[Node, Any]) -> Iterator[tuple[Node, Channels]]:
    """The dimensions that calls merge from several."""
    for node in graph.nodes:
        if op_name(node) in _SPLITS:
            for channels in labels.get(node, {}).values():
                if space.is_product(channels):
                    yield node, channels


def _within(node: Node, path: str) -> bool:
    own = module_path(node)
    return node.op == "call_function" and (own == path or own.startswith(f"{path}.") or not path)
