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

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.groups import Index, Keep
from secateur.compress.dataflow.mask import masked_state
from secateur.compress.dataflow.replay import Values
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
        self.prefix = Prefix(self)
        self._check_replay()

    def count_flops(self, position: int, calls: frozenset[Node] | None) -> None:
        """Add the FLOPs of running a graph, or some of its calls, on one batch."""
        flops = self._flops[position]
        self.spent.forward_flops += sum(flops.values()) if calls is None else sum(flops[call] for call in calls)

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
    """Candidates of one group on top of a choice for the others."""

    def __init__(self, oracle: Oracle, keep: Keep, group: str | None) -> None:
        self._oracle, self._keep = oracle, dict(keep)
        self._base_state = oracle.state(keep)
        names = [] if group is None else [member.parameter for member in oracle.groups[group].members]
        self._dirty = [masked.replay.reachable(names) for masked in oracle.groups.masked]
        oracle.prefix.follow(self._keep, self._base_state)

    def losses(self, candidate: Keep, limits: Mapping[str, float]) -> Losses | None:
        """Each task's mean loss with the candidate's channels; None as soon as a limit is certainly exceeded."""
        oracle = self._oracle
        state = self._base_state | masked_state(oracle.groups.groups, candidate, self._base_state)
        gone = oracle.groups.gone({**self._keep, **candidate})
        sums = dict.fromkeys((task.name for task in oracle.tasks), 0.0)
        oracle.spent.evaluations += 1
        non_negative = True
        for number, (_, targets) in enumerate(oracle.batches):
            predictions = oracle.predictions(oracle.prefix.run(number, state, gone, self._dirty))
            with torch.no_grad():
                values = task_losses(predictions, targets, oracle.tasks)
            for name, value in values.items():
                sums[name] += float(value)
                non_negative &= float(value) >= 0
            if non_negative and any(sums[name] > limit * len(oracle.batches) for name, limit in limits.items()):
                return None
        means = {name: total / len(oracle.batches) for name, total in sums.items()}
        return means if all(math.isfinite(value) for value in means.values()) or not limits else None


class Prefix:
    """Every activation of the model as pruned so far, per calibration batch, for as many batches as the memory limit
    allows. A candidate re-runs only what its parameters reach; an accepted one updates that part once."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._keep: dict[str, Index] = {}
        self._values: dict[int, list[Values]] = {}
        self._bytes = 0
        self._resumed = False

    def resume(self, keep: Keep) -> None:
        """Stand where the evaluation of a finished step of a resumed run left the cache; what that step spent is
        counted already."""
        self._keep = {name: np.asarray(kept) for name, kept in keep.items()}
        self._values, self._bytes, self._resumed = {}, 0, True

    def _refill(self) -> None:
        """Compute the activations of a resumed run again, uncounted: the whole run spent them once."""
        self._resumed, spent = False, self._oracle.spent.forward_flops
        for number in range(len(self._oracle.batches)):
            if self._bytes < self._oracle.cache_limit:
                self._fill(number)
        self._oracle.spent.forward_flops = spent

    def follow(self, keep: Keep, state: Mapping[str, Tensor]) -> None:
        """Bring the cached activations to another choice of channels."""
        groups = self._oracle.groups
        if self._resumed:
            self._refill()
        changed = [name for name in groups if not np.array_equal(keep.get(name, ()), self._keep.get(name, ()))]
        self._keep = {name: np.asarray(kept) for name, kept in keep.items()}
        if not changed or not self._values:
            return
        names = [member.parameter for name in changed for member in groups[name].members]
        dirty = [masked.replay.reachable(names) for masked in groups.masked]
        for number in list(self._values):
            self.run(number, state, groups.gone(keep), dirty, update=True)

    def run(
        self,
        number: int,
        state: Mapping[str, Tensor],
        gone: Index,
        dirty: Sequence[frozenset[Node]],
        update: bool = False,
    ) -> list[list[Any]]:
        """The outputs of all graphs for one batch, re-running only `dirty` where the rest is cached."""
        cached = self._values.get(number)
        if cached is None and self._bytes < self._oracle.cache_limit:
            cached = self._fill(number)
        inputs, results = self._oracle.batches[number][0], []
        for position, masked in enumerate(self._oracle.groups.masked):
            only = None if cached is None else dirty[position]
            values = None if cached is None else cached[position]
            wanted = dirty[position] if update else ()
            outputs, fresh = masked.run(inputs, state, gone, only=only, cached=values, wanted=wanted)
            if update and values is not None:
                values.update(fresh)
            self._oracle.count_flops(position, only)
            results.append(outputs)
        return results

    def _fill(self, number: int) -> list[Values]:
        """Compute all activations of a batch for the choice that the cache follows."""
        groups = self._oracle.groups
        state, gone = self._oracle.state(self._keep), groups.gone(self._keep)
        filled = []
        for position, masked in enumerate(groups.masked):
            inputs = self._oracle.batches[number][0]
            _, values = masked.run(inputs, state, gone, wanted=masked.replay.graph.compute)
            self._oracle.count_flops(position, None)
            self._bytes += _storage_bytes(values)
            filled.append(values)
        self._values[number] = filled
        return filled


_NONE = torch.empty(0, dtype=torch.int64).numpy()


def _storage_bytes(values: Values) -> int:
    """Memory of tensors, shared storage counted once."""
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in _leaves(values)}
    return sum(storages.values())


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
