"""Numbers that the code computes from sizes: masks follow them, as a cut model would.

    scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)       # another number once heads are narrower

In a graph such a number is a constant. A trace of a trial cut shows it change; where it is a power of the size of a
dimension that it is computed from, before and after, it follows that dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from secateur.compress.dataflow.space import Channels
from secateur.profiles.graph import Graph, op_name

_OPS = frozenset(("mul", "div", "scaled_dot_product_attention", "baddbmm"))
_POWERS = (0.5, -0.5, 0.25, -0.25, 1.0, -1.0)
_NEAR = 24
"""Tensors before a call whose sizes are looked at."""
Alive = NDArray[np.bool_]
"""Component → whether it stays."""


@dataclass(frozen=True)
class Scale:
    """An argument of a call, by its place or name: the size of a dimension of a tensor before it, to a power."""

    node: Node
    place: int | str
    source: Node
    dim: int
    power: float


def scales(
    graphs: Sequence[Graph], cut: Sequence[Graph], labels: Mapping[Node, Any], of: Channels, alive: Alive
) -> list[Scale]:
    """The numbers that differ between the graphs of a model and those of a cut of it, as powers of sizes.

    Args:
        of: channel → component.
        alive: the components that the cut left.
    """
    found = []
    for graph, other in zip(graphs, cut, strict=True):
        calls = [node for node in graph.compute if op_name(node) in _OPS]
        others = [node for node in other.compute if op_name(node) in _OPS]
        if list(map(op_name, calls)) != list(map(op_name, others)):
            continue
        for node, after in zip(calls, others, strict=True):
            for place, number in _numbers(node):
                changed = dict(_numbers(after)).get(place, number)
                if changed != number and (scale := _power(node, place, (number, changed), labels, of, alive)):
                    found.append(scale)
    return found


def _numbers(node: Node) -> Iterator[tuple[int | str, float]]:
    """The numbers among a call's arguments, by place or name."""
    given: list[tuple[int | str, Any]] = [*enumerate(node.args), *node.kwargs.items()]
    for place, value in given:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield place, float(value)


def _power(
    node: Node, place: int | str, numbers: tuple[float, float], labels: Mapping[Node, Any], of: Channels, alive: Alive
) -> Scale | None:
    """The nearest dimension of which a number is a power, both of its whole size and of what a cut left of it."""
    for source in islice(_before(node), _NEAR):
        dims = labels.get(source)
        for dim, channels in dims.items() if isinstance(dims, dict) else ():
            sizes = len(channels), int(alive[of[channels]].sum())
            for power in _POWERS:
                if sizes[0] != sizes[1] and all(
                    size and math.isclose(number, size**power, rel_tol=1e-6)
                    for number, size in zip(numbers, sizes, strict=True)
                ):
                    return Scale(node, place, source, dim, power)
    return None


def _before(node: Node) -> Iterator[Node]:
    """What a call is computed from, nearest first."""
    seen, found = {node}, [node]
    for each in found:
        for used in each.all_input_nodes:
            if used not in seen:
                seen.add(used)
                found.append(used)
                yield used


class Following:
    """The numbers of one graph that follow sizes, for any choice of channels."""

    def __init__(self, found: Sequence[Scale], labels: Mapping[Node, Any], of: Channels) -> None:
        self._found: dict[Node, list[tuple[Scale, Channels]]] = {}
        for scale in found:
            components = of[labels[scale.source][scale.dim]]
            self._found.setdefault(scale.node, []).append((scale, components))

    def __bool__(self) -> bool:
        return bool(self._found)

    def arguments(
        self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], alive: Alive
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments as the code of the cut model would give them."""
        for scale, components in self._found.get(node, ()):
            size = int(alive[components].sum())
            if size == len(components):
                continue
            if isinstance(scale.place, str):
                kwargs = {**kwargs, scale.place: size**scale.power}
            else:
                args = (*args[: scale.place], size**scale.power, *args[scale.place + 1 :])
        return args, kwargs
