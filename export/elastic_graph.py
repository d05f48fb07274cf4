"""Graphs of an elastic model: its ONNX form, unfused, so that weights stay what they are in torch, and its components.

The *shared* component is what several tasks need, a *decoder* what one task alone needs; values that decoders read
from the shared component are the interface between them. Weights of a narrower configuration are slices of the full
ones: each is written as such, so that one set of weights serves all graphs; a runtime folds the slices when it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.export.onnx_format import OPSET

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.elastic import Table
    from secateur.core.task import Workload

Array = np.ndarray[Any, Any]
Kept = Mapping[str, Mapping[int, Array]]
"""Weight → kept indices of the dimensions that are cut."""


@dataclass(frozen=True)
class ElasticSource:
    """An elastic model as exporters need it.

    Args:
        full: the model at full width.
        at: (row of the table, width index of each task's decoder) → the static model of that configuration, and how
            its weights are cut out of the full ones.
    """

    full: nn.Module
    workload: Workload
    table: Table
    at: Callable[[int, Mapping[str, int]], tuple[nn.Module, Kept]]


@dataclass(frozen=True)
class Component:
    """A part of a graph: its nodes in order, what it reads and gives, and the weights that it uses.

    `slices` says which weights are cut out of the full ones, and how; `own` are tensors of this configuration only.
    """

    nodes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slices: Mapping[str, Mapping[int, Array]] = field(default_factory=dict)
    own: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A configuration's graph in components. `types`: value → its ONNX element type and rank."""

    shared: Component
    decoders: Mapping[str, Component]
    inputs: tuple[Any, ...]
    types: Mapping[str, tuple[int, int]]


class Graphs:
    """The graphs of a source's configurations. One export serves all of them where no constant of the graph depends on
    a width; otherwise each configuration is exported."""

    def __init__(self, source: ElasticSource) -> None:
        self._source, table = source, source.table
        self.weights = {name: tensor.detach().cpu().numpy() for name, tensor in source.full.state_dict().items()}
        self._full = unfused(source.full, source.workload)
        ends = [(table.exported[0], 0), (table.exported[-1], -1)]
        constants = []
        for row, index in ends:
            chosen = {task: index % len(rows) for task, rows in table.decoders.items()}
            constants.append(_constants(unfused(source.at(row, chosen)[0], source.workload), self.weights))
        constants.append(_constants(self._full, self.weights))
        self.one_for_all = constants[0] == constants[1] == constants[2]
        self.full_names = {tensor.name for tensor in self._full.graph.initializer} & self.weights.keys()

    def split(self, row: int, chosen: Mapping[str, int]) -> Split:
        """One configuration's components."""
        model, kept = self._source.at(row, chosen)
        state = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
        graph = (self._full if self.one_for_all else unfused(model, self._source.workload)).graph
        return _Splitter(graph, state, kept, self.weights).split(self._source.table.tasks)


def unfused(model: nn.Module, workload: Workload) -> Any:
    """The ONNX model, batch left open, before any optimisation; weights keep their names."""
    import onnx
    import torch

    from secateur.core.predict import evaluating
    from secateur.export.onnx import task_program

    with evaluating(model), torch.no_grad():
        program = task_program(model, workload, OPSET)
    proto = onnx.ModelProto()
    proto.CopyFrom(program.model_proto)
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.removeprefix("model.")
    for node in proto.graph.node:
        node.input[:] = [name.removeprefix("model.") for name in node.input]
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.ClearField("name")
    _drop_zero_biases(proto.graph)
    return proto


def _drop_zero_biases(graph: Any) -> None:
    """The exporter gives convolutions without a bias one of zeros, made by four nodes."""
    maker = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3:
            made = maker.get(node.input[2])
            if made is not None and made.op_type == "Expand":
                del node.input[2]


def _constants(proto: Any, weights: Mapping[str, Array]) -> list[bytes]:
    """Everything in a graph that could depend on a width, besides weights."""
    found = [
        b"".join([node.op_type.encode(), *(each.SerializeToString() for each in node.attribute)])
        for node in proto.graph.node
    ]
    found += [t.SerializeToString() for t in proto.graph.initializer if t.name not in weights]
    return found


class _Splitter:
    """One configuration's graph, ready to be taken apart."""

    def __init__(self, graph: Any, state: Mapping[str, Array], kept: Kept, weights: Mapping[str, Array]) -> None:
        self._state, self._kept, self._weights = state, kept, weights
        self._graph, self._nodes = graph, list(graph.node)
        self._maker = {name: at for at, node in enumerate(self._nodes) for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._constant = self._constant_nodes()

    def split(self, tasks: Sequence[str]) -> Split:
        results = dict(zip(tasks, (value.name for value in self._graph.output), strict=True))
        types = {i.name: _type_of(i) for i in (*self._graph.value_info, *self._graph.output, *self._graph.input)}
        inputs = tuple(self._graph.input)
        if len(tasks) == 1:
            whole = self._component(self._upstream(results.values()), list(results.values()))
            return Split(whole, {}, inputs, types)
        needed: dict[int, set[str]] = {}
        for task, result in results.items():
            for at in self._upstream([result]):
                needed.setdefault(at, set()).add(task)
        shared = {at for at, found in needed.items() if len(found) > 1} - self._constant
        own = {task: {at for at, found in needed.items() if found == {task}} - self._constant for task in tasks}
        read = dict.fromkeys(name for task in tasks for at in sorted(own[task]) for name in self._nodes[at].input)
        border = {name: None for name in read if self._maker.get(name) in shared}
        decoders = {}
        for task, result in results.items():
            if self._maker[result] in shared:  # other tasks read this prediction, so that the shared part makes it
                border[result] = None
                decoders[task] = _passing_on(result, f"{task}/prediction")
                types[f"{task}/prediction"] = types[result]
            else:
                decoders[task] = self._component(own[task], [result])
        return Split(self._component(shared, list(border)), decoders, inputs, types)

    def _component(self, members: set[int], outputs: Sequence[str]) -> Component:
        """The given nodes with the constant nodes that they read."""
        read = [name for at in members for name in self._nodes[at].input]
        fixed = [name for name in (*read, *outputs) if self._maker.get(name) in self._constant]
        nodes = [self._nodes[at] for at in sorted(members | self._upstream(fixed))]
        made = {name for node in nodes for name in node.output}
        used = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        weights = [name for name in used if name in self._tensors]
        slices = {name: self._kept.get(name, {}) for name in weights if self._is_slice(name)}
        own = {name: self._own(name) for name in weights if name not in slices}
        inputs = tuple(name for name in used if name not in self._tensors)
        return Component(tuple(nodes), inputs, tuple(outputs), slices, own)

    def _constant_nodes(self) -> set[int]:
        """Nodes that compute from weights and constants alone: each component gets its own."""
        known, found = set(self._tensors), set[int]()
        for at, node in enumerate(self._nodes):
            if all(name in known for name in node.input if name):
                found.add(at)
                known.update(node.output)
        return found

    def _upstream(self, names: Iterable[str]) -> set[int]:
        """The nodes that values are computed from."""
        seen: set[int] = set()
        stack = [self._maker[name] for name in names if name in self._maker]
        while stack:
            at = stack.pop()
            if at not in seen:
                seen.add(at)
                stack += [self._maker[name] for name in self._nodes[at].input if name in self._maker]
        return seen

    def _is_slice(self, name: str) -> bool:
        """Whether the configuration's tensor is, bit for bit, what its indices cut out of the full one."""
        if name not in self._weights or name not in self._state:
            return False
        full = self._weights[name]
        for dim, index in self._kept.get(name, {}).items():
            full = full.take(index, axis=dim)
        return bool(np.array_equal(full, self._state[name]))

    def _own(self, name: str) -> Array:
        from onnx import numpy_helper

        if name in self._state:
            return self._state[name]
        array: Array = numpy_helper.to_array(self._tensors[name])
        return array


def _passing_on(value: str, name: str) -> Component:
    from onnx import helper

    return Component((helper.make_node("Identity", [value], [name]),), (value,), (name,))


def _type_of(info: Any) -> tuple[int, int]:
    return info.type.tensor_type.elem_type, len(info.type.tensor_type.shape.dim)
