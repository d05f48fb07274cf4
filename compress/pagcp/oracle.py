"""The performance-aware oracle: every task's loss of the model without some channels, at the least cost.

Cheap by (a) masks instead of copies, (b) prefix caching: what a group cannot reach is computed once per group, and
(c) early stop: a loss that is above its limit already cannot come back, since losses are sums of non-negative terms.
The forward FLOPs spent are counted, and so are those that the published loop would have spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.groups import Index, Keep
from secateur.compress.dataflow.mask import Masked, masked_state
from secateur.compress.speed import fast_layout, in_layout
from secateur.core.errors import DataError, ModelError
from secateur.core.predict import batch_size, pick_tasks, predict, task_losses
from secateur.core.task import Batch, Task
from secateur.profiles.macs import node_macs

Losses = dict[str, float]


def calibration_batches(batches: Iterable[Batch], samples: int | None) -> list[Batch]:
    """Batches of one size, as many as are asked for; a smaller last batch is dropped."""
    kept: list[Batch] = []
    count = 0
    for batch in batches:
        size = batch_size(batch[0])
        if kept and size != batch_size(kept[0][0]):
            continue
        kept.append(batch)
        count += size
        if samples is not None and count >= samples:
            break
    if not kept:
        raise DataError("the calibration loader yields nothing", "give it at least one batch")
    return kept


@dataclass
class Spent:
    """Forward FLOPs: what was spent, and what trying every ratio in turn on a pruned copy would have."""

    forward_flops: float = 0.0
    published_loop_forward_flops: float = 0.0
    evaluations: int = 0
    not_monotone: int = 0


@dataclass
class Oracle:
    """Evaluates channel choices of one traced model on fixed calibration batches."""

    groups: ChannelGroups
    batches: Sequence[Batch]
    tasks: Sequence[Task]
    cache_limit: int
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        model = self.groups.model
        layout = fast_layout(model, self.batches[0][0], tuple(self.tasks))
        self.batches = [(in_layout(inputs, layout), targets) for inputs, targets in self.batches]
        self._state = {name: in_layout(tensor.detach(), layout) for name, tensor in named_tensors(model).items()}
        self._flops = [{node: 2.0 * node_macs(node) for node in graph.compute} for graph in self.groups.graphs]
        self._check_replay()

    @property
    def full_pass_flops(self) -> float:
        """FLOPs of one pass of the unpruned model over all batches."""
        return len(self.batches) * sum(sum(flops.values()) for flops in self._flops)

    @property
    def samples_per_batch(self) -> int:
        return batch_size(self.batches[0][0])

    def state(self, keep: Keep) -> dict[str, Tensor]:
        """The model's parameters with a choice of channels masked."""
        return self._state | masked_state(self.groups.groups, keep, self._state)

    def losses(self, keep: Keep) -> Losses:
        """Each task's mean loss over all batches."""
        return self.at(keep, None).losses({}, {})  # type: ignore[return-value]

    def at(self, keep: Keep, group: str | None) -> Session:
        """Evaluate candidates of one group on top of a choice for the others."""
        return Session(self, keep, group)

    def _check_replay(self) -> None:
        """The graph must compute what the module does; views that are written to in place can break that."""
        inputs, _ = self.batches[0]
        training = self.groups.model.training
        self.groups.model.eval()
        try:
            with torch.no_grad():
                expected = predict(self.groups.model, inputs, self.tasks)
        finally:
            self.groups.model.train(training)
        found = self.predictions([masked.run(inputs, self._state, _NONE)[0] for masked in self.groups.masked])
        for task in self.tasks:
            for one, other in zip(_leaves(expected[task.name]), _leaves(found[task.name]), strict=True):
                if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * max(1.0, float(one.abs().max()))):
                    raise ModelError(
                        f'the traced graph does not compute what the model computes for task "{task.name}"',
                        "avoid writing in place into views (x[:, :k] += y); build a new tensor instead",
                    )

    def predictions(self, values: Sequence[list[Any]]) -> dict[str, Any]:
        """Task predictions from the outputs of all graphs."""
        outputs = [graph.unflatten(found) for graph, found in zip(self.groups.graphs, values, strict=True)]
        if len(outputs) == 1 and len(self.tasks) >= 1 and isinstance(outputs[0], Mapping):
            return pick_tasks(outputs[0], self.tasks)
        return {task.name: output for task, output in zip(self.tasks, outputs, strict=True)}


class Session:
    """Candidates of one group: the prefix that the group cannot reach is cached per batch, within the limit."""

    def __init__(self, oracle: Oracle, keep: Keep, group: str | None) -> None:
        self._oracle, self._keep, self._group = oracle, dict(keep), group
        names = [] if group is None else [member.parameter for member in oracle.groups[group].members]
        self._base_state = oracle.state(keep)
        self._graphs = [_GraphPart(masked, names) for masked in oracle.groups.masked]
        self._caches: dict[int, list[dict[Node, Any]]] = {}
        self._bytes = 0

    def losses(self, candidate: Keep, limits: Mapping[str, float]) -> Losses | None:
        """Each task's mean loss with the candidate's channels; None as soon as a limit is certainly exceeded."""
        oracle = self._oracle
        keep = {**self._keep, **candidate}
        state = self._base_state | masked_state(oracle.groups.groups, candidate, self._base_state)
        gone = oracle.groups.gone(keep)
        sums = dict.fromkeys((task.name for task in oracle.tasks), 0.0)
        oracle.spent.evaluations += 1
        non_negative = True
        for number, (inputs, targets) in enumerate(oracle.batches):
            predictions = oracle.predictions(self._run(number, inputs, state, gone))
            with torch.no_grad():
                values = task_losses(predictions, targets, oracle.tasks)
            for name, value in values.items():
                sums[name] += float(value)
                non_negative &= float(value) >= 0
            if non_negative and any(sums[name] > limit * len(oracle.batches) for name, limit in limits.items()):
                return None
        means = {name: total / len(oracle.batches) for name, total in sums.items()}
        return means if all(math.isfinite(value) for value in means.values()) or not limits else None

    def _run(self, number: int, inputs: Any, state: Mapping[str, Tensor], gone: Index) -> list[list[Any]]:
        caches = self._caches.get(number)
        results, fresh = [], []
        for position, part in enumerate(self._graphs):
            flops = self._oracle._flops[position]
            if caches is not None:
                values, _ = part.masked.run(inputs, state, gone, only=part.dirty, cached=caches[position])
                self._oracle.spent.forward_flops += sum(flops[node] for node in part.dirty)
            else:
                values, cached = part.masked.run(inputs, state, gone, wanted=part.frontier)
                self._oracle.spent.forward_flops += sum(flops.values())
                fresh.append(cached)
            results.append(values)
        if caches is None and self._bytes < self._oracle.cache_limit and self._group is not None:
            self._bytes += sum(_size(value) for cached in fresh for value in cached.values())
            self._caches[number] = fresh
        return results


class _GraphPart:
    """The part of a graph that a group's parameters reach, and what it reads from the rest."""

    def __init__(self, masked: Masked, names: Sequence[str]) -> None:
        self.masked = masked
        self.dirty = masked.replay.reachable(names)
        self.frontier = masked.replay.frontier(self.dirty)


_NONE = torch.empty(0, dtype=torch.int64).numpy()


def _size(value: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in _leaves(value))


def _leaves(value: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
