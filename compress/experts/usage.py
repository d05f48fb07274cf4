"""Which experts each task uses: a table by task, layer and expert, counted over a data set.

usage = measure(model, layers, batches, "depth")
usage["blocks.1.mlp"].tokens          how many tokens chose each expert
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compress.experts.layers import ExpertLayer, find
from secateur.compress.experts.twin import twinned
from secateur.core.errors import DataError
from secateur.core.experts import by_expert, route
from secateur.core.inputs import call_model, takes_task
from secateur.core.predict import evaluating
from secateur.core.progress import track
from secateur.core.task import Batch, Workload

Floats = list[float]


@dataclass
class Usage:
    """One layer's experts under one task, by the router's numbers.

    tokens: how many tokens chose each expert. gate: sum of their gates. contribution: sum over them of gate · ‖output‖.
    total: tokens that went through the layer.
    """

    tokens: Floats
    gate: Floats
    contribution: Floats
    total: int = 0

    @classmethod
    def empty(cls, rows: int) -> Usage:
        return cls([0.0] * rows, [0.0] * rows, [0.0] * rows)

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def used(self) -> list[int]:
        """Experts that at least one token chose."""
        return [number for number, count in enumerate(self.tokens) if count]


TaskUsage = dict[str, Usage]
"""Path of a layer → its usage under one task."""


def measure(
    model: nn.Module, layers: Sequence[ExpertLayer], batches: Iterable[Batch], task: str, label: str = ""
) -> TaskUsage:
    """Run one task over a data set and count what its routers choose.

    Raises:
        DataError: no batch, or targets without the task: the data are of another one.
        ModelError: a router that gives NaN.
    """
    found: TaskUsage = {}

    def note(layer: ExpertLayer, x: Tensor, scores: Tensor) -> None:
        usage = found.setdefault(layer.path, Usage.empty(scores.shape[-1]))
        _count(usage, layer, x.flatten(0, -2), scores.flatten(0, -2))

    seen = False
    with evaluating(model), watching(layers, task, note):
        for inputs, targets in track(batches, label):
            if task not in targets:
                raise DataError(
                    f'the calibration data have no "{task}"', f"their targets are: {', '.join(map(str, targets))}"
                )
            seen = True
            call(model, inputs, task)
    if not seen:
        raise DataError("the calibration loader yields nothing", "give it at least one batch")
    return found


def probe(model: nn.Module, layers: Sequence[ExpertLayer], batches: Iterable[Batch], tasks: Iterable[str]) -> None:
    """Let every router score one batch, so that one that does not fit its experts shows before any work.

    Raises:
        ModelError: names the layer.
    """
    inputs = next((inputs for inputs, _ in batches), None)
    for task in tasks if inputs is not None else ():
        with evaluating(model), watching(layers, task, lambda *_: None):
            call(model, inputs, task)


def call(model: nn.Module, inputs: Any, task: str) -> Any:
    """Run the model for one task, if it runs tasks one at a time."""
    return call_model(model, inputs, task if takes_task(model) else None)


@contextmanager
def watching(layers: Sequence[ExpertLayer], task: str, note: Any) -> Iterator[None]:
    """Call `note(layer, tokens, scores)` whenever a layer runs. The layer's first argument, by place or by name, are
    its tokens."""

    def hook(layer: ExpertLayer) -> Any:
        def found(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = args[0] if args else next(iter(kwargs.values()))
            note(layer, tokens, layer.scores(tokens, task))

        return found

    handles = [layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count(usage: Usage, layer: ExpertLayer, x: Tensor, scores: Tensor) -> None:
    kept, weights = layer.kept, layer.weights()
    gates, index = route(scores.index_select(-1, kept), layer.top_k, layer.layout.renormalise)
    order, counts = by_expert(index, len(kept))
    rows, flat, start = order // index.shape[-1], gates.flatten()[order], 0
    for number, count in enumerate(counts.tolist()):
        part = slice(start, start + count)
        start += count
        if count:
            norms = weights.expert(number, x[rows[part]]).double().norm(dim=-1)
            row = int(kept[number])
            usage.tokens[row] += count
            usage.gate[row] += float(flat[part].double().sum())
            usage.contribution[row] += float((flat[part].double() * norms).sum())
    usage.total += len(x)


@dataclass
class Table:
    """Usage of every task: what calibration found."""

    tasks: dict[str, TaskUsage] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {task: {path: usage.as_json() for path, usage in found.items()} for task, found in self.tasks.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Table:
        return cls({
            task: {path: Usage(**usage) for path, usage in found.items()} for task, found in document.items()
        })  # fmt: skip

    def used(self, tasks: Iterable[str], path: str) -> list[int]:
        """Experts of a layer that any of the tasks uses."""
        return sorted({number for found in self._of(tasks, path) for number in found.used})

    def contribution(self, tasks: Iterable[str], path: str) -> list[float]:
        """Each expert's share of what all experts of its layer contribute, the largest over the tasks; nothing where
        none of them runs the layer."""
        shares = []
        for found in self._of(tasks, path):
            total = sum(found.contribution) or 1.0
            shares.append([value / total for value in found.contribution])
        return [max(column) for column in zip(*shares, strict=True)]

    def _of(self, tasks: Iterable[str], path: str) -> list[Usage]:
        """What the tasks that run a layer use of it."""
        return [self.tasks[task][path] for task in tasks if path in self.tasks[task]]

    def overlap(self, path: str) -> dict[str, dict[str, float]]:
        """Jaccard index of the experts that two tasks use in a layer: |both| / |either|."""
        sets = {task: set(found[path].used) for task, found in self.tasks.items() if path in found}
        return {one: {other: len(a & b) / (len(a | b) or 1) for other, b in sets.items()} for one, a in sets.items()}


def miss_rate(
    model: nn.Module, layers: Sequence[ExpertLayer], keep: Mapping[str, Sequence[int]], batches: Iterable[Batch],
    task: str,
) -> dict[str, float]:  # fmt: skip
    """For each layer the share of tokens that want an expert which is not kept, on the full model."""
    wanted, missed = dict.fromkeys(keep, 0), dict.fromkeys(keep, 0)

    def note(layer: ExpertLayer, x: Tensor, scores: Tensor) -> None:
        if layer.path in keep:
            chosen = layer.kept[route(scores.flatten(0, -2)[:, layer.kept], layer.top_k)[1]]
            gone = ~torch.isin(chosen, torch.tensor(list(keep[layer.path]), device=chosen.device))
            wanted[layer.path] += len(chosen)
            missed[layer.path] += int(gone.any(-1).sum())

    with evaluating(model), watching(layers, task, note):
        for inputs, _ in batches:
            call(model, inputs, task)
    return {path: missed[path] / max(wanted[path], 1) for path in keep}


def miss_rates(whole: nn.Module, keep: Mapping[str, Sequence[int]], workload: Workload) -> dict[str, dict[str, float]]:
    """`miss_rate` of each task of a workload on its test split; `whole` has all experts."""
    traceable = twinned(whole)
    layers = find(traceable)
    return {task: miss_rate(traceable, layers, keep, workload.test, task) for task in workload.task_names}
