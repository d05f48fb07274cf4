"""Graphs of an elastic model: its ONNX form, unfused, so that weights stay what they are in torch, and its components.

The *shared* component is what several tasks need, a *decoder* what one task alone needs; values that decoders read
from the shared component are the interface between them. Weights of a narrower configuration are slices of the full
ones: each is written as such, so that one set of weights serves all graphs; a runtime folds the slices when it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.core.predict import as_args
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
        return _split(graph, state, kept, self.weights, self._source.table.tasks)


def unfused(model: nn.Module, workload: Workload) -> Any:
    """The ONNX model, batch left open, before any optimisation; weights keep their names."""
    import onnx
    import torch

    from secateur.core.predict import evaluating
    from secateur.export.onnx import task_program

    with evaluating(model), torch.no_grad():
        program = task_program(model, workload, as_args(workload.example_input), OPSET)
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


def _split(
    graph: Any, state: Mapping[str, Array], kept: Kept, weights: Mapping[str, Array], tasks: Sequence[str]
) -> Split:
    from onnx import numpy_helper

    maker = {name: node for node in graph.node for name in node.output if name}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    constant = _constant_nodes(graph, tensors)
    results = dict(zip(tasks, (value.name for value in graph.output), strict=True))
    needed: dict[int, set[str]] = {}
    for task, result in results.items():
        for node in _upstream([result], maker):
            needed.setdefault(id(node), set()).add(task)
    several = len(tasks) > 1
    shared = {key for key, found in needed.items() if (len(found) > 1 or not several) and key not in constant}
    values: dict[str, list[str]] = {task: [] for task in tasks}
    interface: dict[str, None] = {}
    for node in graph.node:
        owners = needed.get(id(node), set())
        if several and len(owners) == 1 and id(node) not in constant:
            (task,) = owners
            for name in node.input:
                if name in maker and id(maker[name]) in shared:
                    interface[name] = None
    if not several:
        interface = dict.fromkeys(results.values())
    for task, result in results.items():  # a prediction that other tasks read, too
        if several and id(maker[result]) in shared:
            interface[result] = None
        values[task] = [result]

    def component(members: set[int], outputs: Sequence[str]) -> Component:
        nodes = [node for node in graph.node if id(node) in members]
        produced = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        fixed = [name for name in (*read, *outputs) if name in maker and id(maker[name]) in constant]
        extra = list(_upstream(fixed, maker))
        ordered = [node for node in graph.node if any(node is each for each in (*extra, *nodes))]
        read = dict.fromkeys(name for node in ordered for name in node.input if name)
        made = produced | {name for node in extra for name in node.output}
        used = [name for name in read if name in tensors]
        slices = {name: kept.get(name, {}) for name in used if _is_slice(name, state, kept, weights)}
        own = {
            name: state[name] if name in state else numpy_helper.to_array(tensors[name])
            for name in used
            if name not in slices
        }
        inputs = [name for name in read if name not in made and name not in tensors]
        return Component(tuple(ordered), tuple(inputs), tuple(outputs), slices, own)

    decoders = {}
    for task in tasks if several else ():
        members = {key for key, found in needed.items() if found == {task} and key not in constant}
        decoders[task] = component(members, values[task])
    types = {info.name: _type_of(info) for info in (*graph.value_info, *graph.output, *graph.input)}
    return Split(component(shared, list(interface)), decoders, tuple(graph.input), types)


def _type_of(info: Any) -> tuple[int, int]:
    return info.type.tensor_type.elem_type, len(info.type.tensor_type.shape.dim)


def _constant_nodes(graph: Any, tensors: Mapping[str, Any]) -> set[int]:
    """Nodes that compute from weights and constants alone: each component gets its own."""
    known, found = set(tensors), set[int]()
    for node in graph.node:
        if all(name in known for name in node.input if name):
            found.add(id(node))
            known.update(node.output)
    return found


def _upstream(names: Sequence[str], maker: Mapping[str, Any]) -> Iterator[Any]:
    seen: set[int] = set()
    stack = [maker[name] for name in names if name in maker]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            stack += [maker[name] for name in node.input if name in maker]


def _is_slice(name: str, state: Mapping[str, Array], kept: Kept, weights: Mapping[str, Array]) -> bool:
    """Whether a configuration's tensor is, bit for bit, what its indices cut out of the full one."""
    if name not in weights or name not in state:
        return False
    full = weights[name]
    for dim, index in kept.get(name, {}).items():
        full = full.take(index, axis=dim)
    return bool(np.array_equal(full, state[name]))
