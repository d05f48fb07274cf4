"""Costs of every configuration, from the polynomials of the cost model: nothing is cut or traced for them.

A call that one task alone needs belongs to its decoder, the others to the shared part, so that the costs of decoders
that do not run can be left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch.fx import Node

from secateur.compress.channel_map import tensor_aliases
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.slimmable.space import Configuration, Space
from secateur.core.elastic import Figures
from secateur.core.inputs import takes_task
from secateur.profiles.count import outputs_of
from secateur.profiles.graph import ancestors
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.parts import Numbers, Parts

SHARED = ""
"""Stands for the part that several tasks need."""
KINDS = ("flops", "params", "size")


class Costing:
    """Costs of a space's configurations, split into the shared part and each task's own."""

    def __init__(self, space: Space) -> None:
        self.space, self.model = space, CostModel(space.groups)
        self._calls = _owners(space)
        self._tensors = _tensor_owners(space)

    def parts(self, configuration: Configuration) -> dict[str, dict[str, float]]:
        """{"": {kind: figure} of the shared part, task: {kind: figure} of its decoder}."""
        widths = self.model.widths(self.space.channels(configuration))
        found = {owner: dict.fromkeys(KINDS, 0.0) for owner in (SHARED, *self.space.tasks)}
        for node, flops in self.model.call_flops(widths).items():
            found[self._calls[node]]["flops"] += flops
        for name, (elements, size, trained) in self.model.tensor_sizes(widths).items():
            part = found[self._tensors.get(name, SHARED)]
            part["size"] += size
            part["params"] += elements if trained else 0.0
        return found

    def operators(self, configuration: Configuration) -> dict[str, list[Operator]]:
        """What a runtime executes for one sample, by owner as in `parts`."""
        found: dict[str, list[Operator]] = {owner: [] for owner in (SHARED, *self.space.tasks)}
        for call, operator in self.model.call_operators(self.model.widths(self.space.channels(configuration))):
            found[self._calls.get(call, SHARED) if call is not None else SHARED].append(operator)
        return found

    def flops(self, configuration: Configuration) -> float:
        return self.model.flops(self.model.widths(self.space.channels(configuration)))

    def activations(self, configuration: Configuration) -> float:
        """Peak bytes of activations for one sample."""
        costs = self.model.costs(self.model.widths(self.space.channels(configuration)))
        return float(costs.peak_memory_bytes - costs.size_bytes)


def _owners(space: Space) -> dict[Node, str]:
    """Call → the one task that needs it, or SHARED."""
    graphs = space.groups.graphs
    if takes_task(space.groups.model):  # each task has a call of its own, in which it runs everything
        return {n: task for task, graph in zip(space.tasks, graphs, strict=True) for n in graph.compute}
    if len(space.tasks) == 1:
        return dict.fromkeys(graphs[0].compute, SHARED)
    needed: dict[Node, list[str]] = {}
    for task in space.tasks:
        for node in ancestors(outputs_of(graphs[0], task)):
            needed.setdefault(node, []).append(task)
    return {node: found[0] if len(found := needed.get(node, [])) == 1 else SHARED for node in graphs[0].compute}


def _tensor_owners(space: Space) -> dict[str, str]:
    """Every name of a parameter or buffer → the one task that needs it; others are left out."""
    aliases = tensor_aliases(space.groups.model)
    return {
        alias: next(iter(tasks))
        for name, tasks in space.needed.items()
        if len(tasks) == 1 and len(space.tasks) > 1
        for alias in aliases.get(name, [name])
    }


def figures(
    space: Space, costing: Costing, rows: Sequence[Sequence[int]], decoders: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[dict[str, Figures], float]:
    """The cost figures of a table (see `Table.costs`), and its memory margin.

    The peak of a configuration is taken as the largest over its decoders, each with the others at their smallest.
    That is exact where decoders run one after the other; the margin is the largest ratio of the true peak to that
    over 64 random configurations, so that it holds elsewhere too.
    """
    tasks = space.tasks
    shared = {kind: np.zeros(len(rows)) for kind in (*KINDS, "activations")}
    own = {kind: {t: np.zeros((len(rows), len(decoders[t]))) for t in tasks} for kind in shared}
    for k, row in enumerate(rows):
        for task in tasks:
            for d in range(len(decoders[task])):
                at = joined(space, row, {task: decoders[task][d]})
                parts = costing.parts(at)
                for kind in KINDS:
                    shared[kind][k] = parts[SHARED][kind]
                    own[kind][task][k, d] = parts[task][kind]
                own["activations"][task][k, d] = costing.activations(at)
    found = {kind: Figures(shared[kind], own[kind]) for kind in shared}
    return found, _margin(space, costing, found["activations"], rows, decoders)


def _margin(
    space: Space,
    costing: Costing,
    activations: Figures,
    rows: Sequence[Sequence[int]],
    decoders: Mapping[str, Sequence[Sequence[int]]],
) -> float:
    draw, worst = np.random.default_rng(0), 1.0
    for _ in range(64):
        k = int(draw.integers(len(rows)))
        chosen = {task: int(draw.integers(len(found))) for task, found in decoders.items()}
        at = joined(space, rows[k], {task: decoders[task][d] for task, d in chosen.items()})
        estimate = max(activations.decoders[task][k, d] for task, d in chosen.items())
        worst = max(worst, costing.activations(at) / max(estimate, 1.0))
    return worst


def parts_of(
    space: Space, costing: Costing, rows: Sequence[Sequence[int]], decoders: Mapping[str, Sequence[Sequence[int]]]
) -> Parts:
    """The operators of every part of a table's configurations. All decoders are looked at together, at their first
    width, at their second, and so on: what is a task's own depends on its own widths and the row's only."""
    numbers: dict[Operator, int] = {}

    def numbered(operators: Sequence[Operator]) -> Numbers:
        return tuple(numbers.setdefault(operator, len(numbers)) for operator in operators)

    shared: list[Numbers] = []
    own: dict[str, list[list[Numbers]]] = {task: [] for task in space.tasks}
    for row in rows:
        at = [
            {task: each[min(d, len(each) - 1)] for task, each in decoders.items()}
            for d in range(max(len(each) for each in decoders.values()))
        ]
        found = [costing.operators(joined(space, row, chosen)) for chosen in at]
        shared.append(numbered(found[0][SHARED]))
        for task, each in own.items():
            each.append([numbered(found[d][task]) for d in range(len(decoders[task]))])
    return Parts(tuple(numbers), tuple(shared), {task: tuple(map(tuple, each)) for task, each in own.items()})


def joined(space: Space, row: Sequence[int], decoders: Mapping[str, Sequence[int]]) -> Configuration:
    """A configuration from widths of the shared stages and of some decoders; the others have their smallest."""
    found = [0] * len(space.stages)
    for place, index in zip(space.shared(), row, strict=True):
        found[place] = int(index)
    for task, chosen in decoders.items():
        for place, index in zip(space.decoder(task), chosen, strict=True):
            found[place] = int(index)
    return tuple(found)
