"""trace(model, x): from a model to its channel groups.

The graphs of a model (one, or one per task, plus the training-mode graph so that auxiliary heads are cut along) are
walked once with the rule table; parameters are shared between graphs by name, which unites their groups.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from secateur.compress.channel_map import tensor_aliases
from secateur.compress.dataflow.attributes import Constant, Scopes, bindings
from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.checks import check
from secateur.compress.dataflow.coupling import Coupling, couplable, couple
from secateur.compress.dataflow.grouping import grouped
from secateur.compress.dataflow.groups import Role
from secateur.compress.dataflow.rules import Op, Rule, find_rule, refuse
from secateur.compress.dataflow.scales import Scale
from secateur.compress.dataflow.space import Channels, Space
from secateur.compress.dataflow.trial import settle
from secateur.core.errors import ModelError
from secateur.profiles.graph import FILLED, Graph, capture_tasks, module_path, op_name, shape


def trace(model: nn.Module, inputs: Any, tasks: Iterable[str] = (), *, trial: bool = True) -> ChannelGroups:
    """Find the channel groups of a model.

    Args:
        model: any module that torch.export can trace; not changed.
        inputs: one batch as the model takes it: a tensor, a tuple or a dict of tensors.
        tasks: names of the tasks, needed when the model is called as `forward(x, task)`.
        trial: cut a copy of the model to find the groups whose sizes the model's own code fixes.

    Raises:
        ModelError: when the model cannot be traced in evaluation mode, or cannot be cut as it is (see `checks`).

    Warns:
        UserWarning: once per op without a rule; the channels that reach it are kept whole.
    """
    tasks = tuple(tasks)
    check(model)
    graphs = capture_tasks(model, inputs, tasks)
    training = training_graphs(model, inputs, tasks)
    if not trial:
        return from_graphs(model, graphs, training)
    return settle(functools.partial(from_graphs, model, graphs, training), inputs, tasks)


def training_graphs(model: nn.Module, inputs: Any, tasks: tuple[str, ...]) -> list[Graph]:
    """The graphs in training mode, where a model may run auxiliary heads; none if that cannot be traced."""
    try:
        return capture_tasks(model, inputs, tasks, training=True)
    except ModelError:
        return []


def from_graphs(
    model: nn.Module,
    graphs: Sequence[Graph],
    training: Sequence[Graph] = (),
    couplings: Collection[Coupling] = (),
    scales: Sequence[Scale] = (),
    constants: Collection[Constant] = (),
) -> ChannelGroups:
    """As `trace`, from graphs that were captured before.

    Args:
        couplings: module classes whose code takes one size from another (`b, n, c = x.shape`), so that both must stay
            the same.
        scales: numbers that the code computes from sizes, as trial cuts found them.
        constants: attributes that count no channels, although they are as large as a dimension.
    """
    flow = Flow(model)
    for graph in (*graphs, *training):
        flow.walk(graph)
    seen = model, (*graphs, *training), flow.labels
    couple(flow.space, *seen, couplings)
    components = flow.space.components()
    groups = grouped(flow.parameters, components, flow.roles())
    sizes, ways = bindings(*seen, components, constants), couplable(*seen, flow.space, components)
    return ChannelGroups(
        model, graphs, flow.labels, components, groups, _dead(graphs, model), bool(training), sizes, couplable=ways,
        scales=scales,
    )  # fmt: skip


class Flow:
    """Labels of every tensor of every graph, in one space of channels."""

    def __init__(self, model: nn.Module) -> None:
        self.space, self._scopes = Space(), Scopes(model)
        self.labels: dict[Node, Any] = {}
        self.parameters: dict[tuple[str, int], Channels] = {}
        self._refused: set[str] = set()

    def walk(self, graph: Graph) -> None:
        """Label the graph's state, run the rule of every call, fix the outputs."""
        for node, name in graph.state.items():
            if node.users and not _is_table(node):
                self.labels[node] = {
                    dim: self._parameter(name, dim, size) for dim, size in enumerate(shape(node)) if size > 1
                }
        for node in graph.nodes:
            self._visit(node)
        for node, name in zip(graph.outputs, graph.output_names, strict=True):
            for channels in self._of(node).values():
                self.space.fix(channels, f"output of the model{f' ({name})' if name else ''}")

    def _parameter(self, name: str, dim: int, size: int) -> Channels:
        if (name, dim) not in self.parameters:
            self.parameters[name, dim] = self.space.fresh(size)
        return self.parameters[name, dim]

    def _of(self, node: Node) -> dict[int, Channels]:
        found = self.labels.get(node, {})
        return found if isinstance(found, dict) else {}

    def _visit(self, node: Node) -> None:
        if op_name(node) == "getitem":
            parts = self.labels.get(node.args[0], {})  # type: ignore[arg-type]
            self.labels[node] = parts[node.args[1]] if isinstance(parts, list) else parts  # type: ignore[index]
            return
        op = Op(node, self.labels, self.space, self._scopes.sizes(module_path(node)))
        if op.name not in FILLED and not any(self._of(tensor) for tensor in op.tensors):
            return
        found = find_rule(node)
        if found is None:
            self._warn(op)
        known = len(self.space.made) + len(self.space.read)
        self.labels[node] = (found or refuse)(op)
        if found is not None and known == len(self.space.made) + len(self.space.read):
            self._ask_for_weights(op, found)

    def roles(self) -> dict[tuple[str, int], Role]:
        """A parameter's own channels tell whether a weight makes or reads them."""
        made = {int(channels[0]) for channels in self.space.made}
        read = {int(channels[0]) for channels in self.space.read}
        roles: dict[tuple[str, int], Role] = {}
        for key, channels in self.parameters.items():
            if int(channels[0]) in made:
                roles[key] = "out"
            elif int(channels[0]) in read:
                roles[key] = "in"
        return roles

    def _ask_for_weights(self, op: Op, found: Rule) -> None:
        """Warn of a user's rule for an op with a matrix of weights of which it does not say what they make."""
        weights = [node for node in op.tensors if not node.all_input_nodes and len(op.labels(node)) > 1]
        if weights and not found.__module__.startswith("secateur.") and op.where not in self._refused:
            self._refused.add(op.where)
            warnings.warn(
                f"the rule for the op {op.where} does not say what its weights make (op.weight): channels that they "
                "alone make are kept whole",
                stacklevel=2,
            )

    def _warn(self, op: Op) -> None:
        if op.where not in self._refused:
            self._refused.add(op.where)
            warnings.warn(
                f"no rule for the op {op.where}: the channels that reach it are kept whole "
                f"(secateur.compress.dataflow.rule adds one)",
                stacklevel=2,
            )


def _is_table(node: Node) -> bool:
    """Whether a tensor is a table of whole numbers, places in another tensor, say: its size stays. A list of them may
    have an entry for each channel, as the one of the experts that are kept."""
    value = node.meta["val"]
    whole = value.dtype is not torch.bool and not value.dtype.is_floating_point and not value.dtype.is_complex
    return bool(whole and value.dim() > 1)


def _dead(graphs: Sequence[Graph], model: nn.Module) -> tuple[str, ...]:
    """Modules with parameters of which no output in evaluation mode depends on any: topmost paths."""
    used = {name for graph in graphs for node, name in graph.state.items() if node in graph.live}
    aliases = tensor_aliases(model)
    alive = {alias for name in used for alias in aliases.get(name, (name,))}
    owners = [path for path, module in model.named_modules() if any(True for _ in module.parameters())]
    dead = [path for path in owners if path and not any(name.startswith(f"{path}.") for name in alive)]
    return tuple(path for path in dead if not any(path.startswith(f"{other}.") for other in dead))
