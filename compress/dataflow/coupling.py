"""Modules whose code takes one size from another.

    b, n, c = x.shape
    qkv = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads)     the width inside is that outside
    q, k, v = feat.split([self.key_dim, self.key_dim, self.dim], dim=1)      one attribute counts several dimensions
    y = self.reduce(x).reshape(b, c, -1)                                     what comes out is as wide as what goes in

Heads cannot be cut there unless the channels of x are cut along. The graph does not show it; when a trial cut fails in
such a module, the sizes are tied, for all modules of its class, in the way that helps and leaves most places to cut at:
the dimensions of one size that an attribute of the module may count; what calls with explicit sizes return, to what
comes in; or the width inside to all of that size outside.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from torch import nn
from torch.fx import Node

from secateur.compress.dataflow.attributes import given, integers, sized_tensors, within
from secateur.compress.dataflow.space import Channels, Components, Space
from secateur.profiles.graph import Graph, module_path, op_name

Coupling = tuple[type, Literal["outside", "attribute", "input"]]
"""A module class, and which sizes in its code are one."""

Labelled = Mapping[Node, Any]
_SPLITS = frozenset(("view", "reshape", "unflatten", "flatten", "_unsafe_view"))
_SIZED = _SPLITS | {"expand", "split", "split_with_sizes", "chunk", "slice", "narrow"}


def couple(
    space: Space, model: nn.Module, graphs: Collection[Graph], labels: Labelled, couplings: Collection[Coupling]
) -> None:
    """Tie what the code of some module classes takes from one size."""
    if not couplings:
        return
    for path, module in model.named_modules():
        if (type(module), "outside") in couplings:
            for graph in graphs:
                _tie_outside(space, path, graph, labels)
    tensors = sized_tensors(model, graphs, labels)
    for path, module in model.named_modules():
        if (type(module), "attribute") in couplings:
            for one, other in _of_one_attribute(module, tensors.get(path, ())):
                space.tie(one, other)
        if (type(module), "input") in couplings:
            for axes, given in _of_one_input(path, graphs, labels):
                space.tie(space.product(axes).ravel(), given)


def couplable(
    model: nn.Module, graphs: Collection[Graph], labels: Labelled, space: Space, components: Components
) -> dict[str, list[Coupling]]:
    """For every module that may have to be coupled, by its path, how; what ties least comes first."""
    found: dict[str, list[Coupling]] = defaultdict(list)
    merging = {module_path(node) for graph in graphs for node, _ in _products(space, graph, labels)}
    shaping = {module_path(node) for graph in graphs for node in graph.nodes if op_name(node) in _SIZED}
    tensors = sized_tensors(model, graphs, labels)
    for path, module in model.named_modules():
        pairs = _of_one_attribute(module, tensors.get(path, ()))
        if any((components.of[one] != components.of[other]).any() for one, other in pairs):
            found[path].append((type(module), "attribute"))
        tied = _of_one_input(path, graphs, labels) if path in shaping else ()
        if any(len(axes) > 1 or (components.of[axes[0]] != components.of[given]).any() for axes, given in tied):
            found[path].append((type(module), "input"))
        if path in merging:
            found[path].append((type(module), "outside"))
    return found


def channels_sized_in_code(graph: Graph, labels: Labelled) -> Iterator[Channels]:
    """The dimensions of what goes into calls whose sizes the code gives, and of what comes out."""
    for node in graph.nodes:
        if node.op == "call_function" and op_name(node) in _SIZED:
            for used in (*node.all_input_nodes, node):
                yield from _arrays(labels, used).values()


def _tie_outside(space: Space, path: str, graph: Graph, labels: Labelled) -> None:
    """Tie what a module splits into heads, and merges again, to everything of the same size around it."""
    merged = {
        len(channels): channels for node, channels in _products(space, graph, labels) if module_path(node) == path
    }
    for node in graph.nodes:
        if not within(node, path):
            continue
        for used in (*node.all_input_nodes, node):
            if used not in graph.state and (module_path(used) == path or not within(used, path)):
                for channels in _arrays(labels, used).values():
                    if len(channels) in merged:
                        space.tie(merged[len(channels)], channels)
        if op_name(node) in _SPLITS and module_path(node) == path:
            for axes in _axes(labels, node):
                if len(axes) > 1 and (count := math.prod(map(len, axes))) in merged:
                    space.tie(space.product(axes).ravel(), merged[count])


def _of_one_attribute(module: nn.Module, tensors: Iterable[Sequence[Channels]]) -> Iterator[tuple[Channels, Channels]]:
    """Pairs of dimensions of one size, where an attribute of the module is of that size. Where a tensor has several of
    them (as many heads as each is wide), each goes with those in its own place."""
    sizes = {size for *_, size in integers(module)}
    alike: dict[tuple[int, int], list[Channels]] = defaultdict(list)
    for tensor in tensors:
        met: Counter[int] = Counter()
        for channels in tensor:
            size = len(channels)
            if size in sizes and len(np.unique(channels)) == size:  # not heads of several samples
                alike[size, met[size]].append(channels)
                met[size] += 1
    for dimensions in alike.values():
        yield from pairwise(dimensions)


def _of_one_input(
    path: str, graphs: Iterable[Graph], labels: Labelled
) -> Iterator[tuple[Sequence[Channels], Channels]]:
    """(One dimension, or two that stand side by side, of what a module's own calls with explicit sizes return; a
    dimension of as many channels of what the module is given)."""
    for graph in graphs:
        widths = {len(channels): channels for node in given(path, graph) for channels in _arrays(labels, node).values()}
        for node in graph.nodes:
            if module_path(node) == path and op_name(node) in _SIZED:
                for axes in _axes(labels, node):
                    if (count := math.prod(map(len, axes))) in widths:
                        yield axes, widths[count]


def _axes(labels: Labelled, node: Node) -> Iterator[Sequence[Channels]]:
    """The dimensions of what a call returns, of all of its parts: each, and each with the next one."""
    found = labels.get(node, {})
    for part in found if isinstance(found, list) else [found]:
        for dim in part:
            yield [part[dim]]
            if dim + 1 in part:
                yield [part[dim], part[dim + 1]]


def _products(space: Space, graph: Graph, labels: Labelled) -> Iterator[tuple[Node, Channels]]:
    """The dimensions that calls merge from several."""
    for node in graph.nodes:
        if op_name(node) in _SPLITS:
            for channels in _arrays(labels, node).values():
                if space.is_product(channels):
                    yield node, channels


def _arrays(labels: Labelled, node: Node) -> dict[int, Channels]:
    found = labels.get(node, {})
    return found if isinstance(found, dict) else {}
