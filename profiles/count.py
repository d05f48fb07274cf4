"""Counting: what a model costs for one sample, per layer, per task and in total.

    table = count(model, example_input, tasks=("segmentation", "depth"))
    table.costs.flops, table.layers[0].bytes_moved, table.tasks["depth"].flops_exclusive, table.dead

Conventions:
- FLOPs are 2 × the MACs of convolutions and matrix products (`secateur.profiles.macs`); `uncounted` lists others.
- Figures are per sample: what depends on the input is divided by the example's batch size.
- Only what an output depends on is counted: a branch that is computed and dropped costs no FLOPs and no memory.
- `params` are all parameters of the module as it stands, those of dead branches included, shared ones once.
- A model called one task at a time (`forward(x, task)`) costs what running all its tasks executes: a shared trunk once
  per call. Its memory is that of the largest call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from secateur.core.costs import Costs
from secateur.core.errors import ModelError
from secateur.core.inputs import takes_task
from secateur.core.traceable import traceable
from secateur.profiles.graph import (
    FILLED,
    SPREADING,
    Graph,
    ancestors,
    capture,
    capture_tasks,
    is_in_place,
    module_kind,
    module_path,
    op_name,
    shape,
)
from secateur.profiles.macs import mac_terms, node_macs
from secateur.profiles.memory import (
    allocated_bytes,
    is_view,
    moved_bytes,
    peak_activation_bytes,
    tensor_bytes,
)

__all__ = ["CostTable", "LayerCost", "TaskCost", "count", "count_graphs", "peak_activation_bytes", "per_sample"]


@dataclass(frozen=True)
class LayerCost:
    """Costs of one module, without those of the modules inside it, per sample.

    `activation_bytes` is the memory of the tensors that its calls produce. `bytes_moved` lets each call read its
    operands and weights once and write its result once, and views move nothing. A module called more than once has one
    entry, for all its calls; one that is never called has zeros next to its parameters.
    """

    name: str
    kind: str
    flops: int = 0
    params: int = 0
    activation_bytes: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class TaskCost:
    """FLOPs that a task needs: those that no other task needs, and those that others need too.

    Outputs that belong to no task do not make a layer shared.
    """

    flops_exclusive: int
    flops_shared: int

    @property
    def flops(self) -> int:
        return self.flops_exclusive + self.flops_shared


@dataclass(frozen=True)
class CostTable:
    """What `count` found.

    Attributes:
        costs: totals for one sample.
        layers: in the order of their first call; those never called last. Their FLOPs and parameters sum to the totals.
        tasks: costs of each task that was named.
        dead: topmost modules with parameters of which no output depends on any, in evaluation mode.
        uncounted: op → number of its calls that count no FLOPs by convention, views left out.
    """

    costs: Costs
    layers: tuple[LayerCost, ...]
    tasks: Mapping[str, TaskCost]
    dead: tuple[str, ...]
    uncounted: Mapping[str, int]


def count(model: nn.Module, example_input: Any, tasks: Sequence[str] = ()) -> CostTable:
    """Count a model in evaluation mode.

    Args:
        example_input: a tensor, a tuple or a dict of tensors, any batch size, the batch in dimension 0.
        tasks: names to look for among the keys of the output; needed for models called as `forward(x, task)`.

    Raises:
        ModelError: when torch.export cannot trace the model, or the output has no prediction for a task.
    """
    model = traceable(model)
    graphs = capture_tasks(model, example_input, tasks) if tasks else [capture(model, example_input)]
    return count_graphs(graphs, model, tasks)


def count_graphs(graphs: Sequence[Graph], model: nn.Module, tasks: Sequence[str] = ()) -> CostTable:
    """As `count`, for a model that was traced already, in evaluation mode, with `capture` or `capture_tasks`."""
    samples = [per_sample(graph) for graph in graphs]
    layers = _layers(samples, model)
    weights = _state_bytes(model)
    costs = Costs(
        flops=sum(layer.flops for layer in layers),
        params=sum(parameter.numel() for parameter in model.parameters()),
        peak_memory_bytes=weights + max(peak_activation_bytes(sample.graph, sample.bytes) for sample in samples),
        size_bytes=weights,
    )
    return CostTable(
        costs=costs,
        layers=layers,
        tasks=_tasks(samples, tasks, called_by_task=takes_task(model)),
        dead=_dead(graphs, model),
        uncounted=_uncounted(graphs),
    )


@dataclass(frozen=True)
class PerSample:
    """A graph's figures for one sample: those of tensors that depend on the input are shared among the batch.

    Attributes:
        batch: batch size that the graph was traced with.
        batched: nodes whose size grows with the batch: those computed from the user's input, and from what is repeated
            for each sample.
    """

    graph: Graph
    batch: int
    batched: frozenset[Node]

    def flops(self, node: Node) -> int:
        """FLOPs of a call for one sample."""
        return self.share(node, 2 * node_macs(node))

    def bytes(self, node: Node) -> int:
        """Bytes of a tensor for one sample."""
        return self.share(node, tensor_bytes(node))

    def share(self, node: Node, total: int) -> int:
        """One sample's share, rounded up, of a figure that a node has for the whole batch."""
        return -(-total // self.batch) if node in self.batched else total


def per_sample(graph: Graph) -> PerSample:
    """Find the batch size of a graph, and what grows with it."""
    sizes = [shape(node)[0] for node in graph.inputs if shape(node)]
    batch, batched = sizes[0] if sizes else 1, set(graph.inputs)
    for node in graph.nodes:
        if not batched.isdisjoint(node.all_input_nodes) or _is_for_each_sample(node, batch):
            batched.add(node)
    return PerSample(graph, batch, frozenset(batched))


def _is_for_each_sample(node: Node, batch: int) -> bool:
    """Whether a call repeats something for each sample (queries of a decoder, a first state), as far as sizes show: one
    of its first two dimensions is as large as the batch."""
    name, size = op_name(node), shape(node) if op_name(node) in (*SPREADING, *FILLED) else ()
    if batch < 2 or batch not in size[:2]:
        return False
    if name in FILLED:
        return True
    source = shape(node.all_input_nodes[0])
    places = [dim - len(size) + len(source) for dim, count in enumerate(size[:2]) if count == batch]
    return any(place < 0 or source[place] == 1 for place in places)


@dataclass
class _Sums:
    """Figures of one layer while they are added up."""

    kind: str
    flops: int = 0
    params: int = 0
    activation_bytes: int = 0
    bytes_moved: int = 0


def _layers(samples: Iterable[PerSample], model: nn.Module) -> tuple[LayerCost, ...]:
    sums: dict[str, _Sums] = {}
    for sample in samples:
        for node in sample.graph.compute:
            layer = sums.setdefault(module_path(node), _Sums(module_kind(node)))
            layer.flops += sample.flops(node)
            layer.bytes_moved += moved_bytes(node, sample.bytes)
            if not is_view(node) and not is_in_place(node):
                layer.activation_bytes += allocated_bytes(node, sample.bytes)
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        layer = sums.setdefault(owner, _Sums(type(model.get_submodule(owner)).__name__))
        layer.params += parameter.numel()
    return tuple(LayerCost(name, **vars(layer)) for name, layer in sums.items())


def _state_bytes(model: nn.Module) -> int:
    """Bytes of parameters and persistent buffers, tied ones once."""
    distinct = {
        id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _tasks(samples: Sequence[PerSample], tasks: Sequence[str], *, called_by_task: bool) -> dict[str, TaskCost]:
    if called_by_task:
        needed = dict(zip(tasks, map(_calls, samples), strict=False))
    else:
        needed = {task: _dependencies(samples[0], task) for task in tasks}
    return {task: _task_cost(task, needed) for task in tasks}


def _task_cost(task: str, needed: Mapping[str, Counter[Any]]) -> TaskCost:
    """`needed`: for each task the FLOPs of its calls, each under a key that is the same for all tasks that need it."""
    others = set().union(*(calls for name, calls in needed.items() if name != task))
    shared = sum(flops for call, flops in needed[task].items() if call in others)
    return TaskCost(flops_exclusive=needed[task].total() - shared, flops_shared=shared)


def _dependencies(sample: PerSample, task: str) -> Counter[Any]:
    """FLOPs of the calls that a task's prediction is computed from."""
    nodes = ancestors(outputs_of(sample.graph, task))
    return Counter({node: sample.flops(node) for node in sample.graph.compute if node in nodes})


def _calls(sample: PerSample) -> Counter[Any]:
    """FLOPs of the calls of one task's own graph; the same module, op and weights name the same call in another's."""
    flops: Counter[Any] = Counter()
    for node in sample.graph.compute:
        weights = frozenset(sample.graph.state[used] for used in node.all_input_nodes if used in sample.graph.state)
        flops[module_path(node), op_name(node), weights] += sample.flops(node)
    return flops


def outputs_of(graph: Graph, task: str) -> list[Node]:
    """The outputs below the key `task`, that nearest to the top where there are several (as `predict` picks them)."""
    depths = {
        output: f".{name}.".partition(f".{task}.")[0].count(".")
        for output, name in zip(graph.outputs, graph.output_names, strict=True)
        if f".{task}." in f".{name}."
    }
    if not depths:
        found = ", ".join(name for name in graph.output_names if name)
        raise ModelError(
            f'the model\'s output has no prediction for task "{task}"',
            f"it has: {found}" if found else "return {task: prediction} from forward",
        )
    nearest = min(depths.values())
    return [output for output, depth in depths.items() if depth == nearest]


def _dead(graphs: Iterable[Graph], model: nn.Module) -> tuple[str, ...]:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    names = {name for graph in graphs for node, name in graph.state.items() if node in graph.live}
    used = {id(tensors[name]) for name in names if name in tensors}
    return tuple(_topmost_dead(model, "", used))


def _topmost_dead(module: nn.Module, path: str, used: set[int]) -> Iterator[str]:
    parameters = {id(parameter) for parameter in module.parameters()}
    if parameters and parameters.isdisjoint(used):
        yield path
    elif not parameters <= used:
        for name, child in module.named_children():
            yield from _topmost_dead(child, f"{path}.{name}" if path else name, used)


def _uncounted(graphs: Iterable[Graph]) -> dict[str, int]:
    calls = (node for graph in graphs for node in graph.compute)
    return dict(Counter(op_name(node) for node in calls if not is_view(node) and not mac_terms(node)).most_common())
