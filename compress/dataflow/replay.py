"""Replay: run a traced graph with other parameter values, from any cut of it on.

What the pruning oracle stands on: masked parameters are passed in instead of copying the model, and values that a
change cannot reach are computed once and passed in as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from secateur.compress.channel_map import named_tensors
from secateur.core.inputs import tensors
from secateur.profiles.graph import Graph, op_name

Values = dict[Node, Any]
Call = Callable[[Node, tuple[Any, ...], dict[str, Any]], Any]


class Replay:
    """An interpreter of one graph. In-place ops are run in their functional form, so that cached values stay."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph = graph
        self._tensors = named_tensors(model)
        self._functions = {node: functional(node) for node in graph.compute}

    def state(self) -> dict[str, Tensor]:
        """The model's own parameters and buffers that the graph reads, by name."""
        return {name: self._tensors[name] for node, name in self.graph.state.items() if node in self.graph.live}

    @cached_property
    def _last_use(self) -> dict[Node, list[Node]]:
        """For each call, the values that nobody needs after it."""
        last: dict[Node, Node] = {}
        for node in self.graph.compute:
            for used in node.all_input_nodes:
                last[used] = node
        freed: dict[Node, list[Node]] = {}
        for used, node in last.items():
            if used.op == "call_function" and used not in self.graph.outputs:
                freed.setdefault(node, []).append(used)
        return freed

    def reachable(self, names: Iterable[str]) -> frozenset[Node]:
        """The calls whose value depends on some of the named parameters."""
        names = set(names)
        dirty = {node for node, name in self.graph.state.items() if name in names}
        calls = set()
        for node in self.graph.compute:
            if any(used in dirty for used in node.all_input_nodes):
                dirty.add(node)
                calls.add(node)
        return frozenset(calls)

    @torch.no_grad()
    def run(
        self,
        inputs: Any,
        state: Mapping[str, Tensor],
        *,
        only: frozenset[Node] | None = None,
        cached: Values | None = None,
        wanted: Iterable[Node] = (),
        call: Call | None = None,
    ) -> tuple[list[Any], Values]:
        """Run the graph on one batch.

        Args:
            state: tensors that replace the model's own, by name.
            only: the calls to run; the values that they read besides must be in `cached`.
            wanted: calls whose values are returned besides the outputs.
            call: how to execute a call instead of the plain way.

        Returns:
            the outputs (None for one that was neither run nor cached), and the wanted values.
        """
        values: Values = dict(self.graph.constants)
        for node, name in self.graph.state.items():
            if node in self.graph.live:
                values[node] = state[name] if name in state else self._tensors[name]
        values.update(zip(self.graph.inputs, tensors(inputs), strict=True))
        values.update(cached or {})
        kept = set(wanted)
        for node in self.graph.compute:
            if only is not None and node not in only:
                continue
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = call(node, args, kwargs) if call else self._functions[node](*args, **kwargs)
            for done in self._last_use.get(node, ()):
                if done not in kept:
                    values.pop(done, None)
        return [values.get(node) for node in self.graph.outputs], {node: values[node] for node in kept}

    def execute(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one call the plain way."""
        return self._functions[node](*args, **kwargs)


def functional(node: Node) -> Callable[..., Any]:
    """The op of a call, in-place ops replaced by the op that returns a new tensor."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return target  # type: ignore[no-any-return]
    packet = getattr(getattr(torch.ops, target.namespace), op_name(node), None)
    return getattr(packet, target._overloadname, target) if packet is not None else target
