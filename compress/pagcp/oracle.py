"""The performance-aware oracle: every task's loss of the model without some channels, at the least cost.

Cheap by (a) masks instead of copies, (b) prefix caching: what a group cannot reach is computed once per chunk, and
(c) stopping early, which is the business of a `Session`: candidates are compared with the model as pruned so far on the
same samples, and a task that is clear is run on no more of them. With `confidence` None every decision is what the
whole calibration set says.
The forward FLOPs spent are counted, and so are those that the published loop would have spent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.groups import Keep
from secateur.compress.dataflow.mask import masked_state
from secateur.compress.pagcp.prefix import Calls, Choice, Count, Prefix
from secateur.compress.pagcp.sampling import Estimate, Losses, Standing, estimate, means
from secateur.compress.pagcp.session import FEWEST_CHUNKS, Session
from secateur.compress.speed import fast_layout, float32, in_layout
from secateur.core.errors import ModelError
from secateur.core.inputs import batch_size, takes_task
from secateur.core.predict import evaluating, pick_tasks, predict, task_losses
from secateur.core.task import Batch, Task
from secateur.profiles.graph import Graph, ancestors
from secateur.profiles.macs import node_macs

ROUNDING = 0.02
"""Relative difference that reduced precision may make to a loss. Candidates are compared with the model as pruned so
far in the same precision, where most of it cancels."""


@dataclass
class Spent:
    """Forward FLOPs: what was spent, and what trying every ratio in turn on a pruned copy would have."""

    forward_flops: float = 0.0
    published_loop_forward_flops: float = 0.0
    evaluations: int = 0
    not_monotone: int = 0


@dataclass
class Oracle:
    """Evaluates channel choices of one traced model on fixed calibration chunks.

    Args:
        confidence: standard errors that a loss must be away from its limit to be decided on a part of the chunks.
        precision: of convolutions and matrix products; float32 where losses come out differently in less.

    Attributes:
        reference: what some model loses on each chunk, the original as a rule, to know others by the difference.
    """

    groups: ChannelGroups
    batches: Sequence[Batch]
    tasks: Sequence[Task]
    cache_limit: int
    spent: Spent = field(default_factory=Spent)
    confidence: float | None = None
    precision: torch.dtype = torch.float32
    reference: Sequence[Losses] = ()

    def __post_init__(self) -> None:
        model = self.groups.model
        layout = fast_layout(self.batches[0][0], tuple(self.tasks), model)
        self.batches = [(in_layout(inputs, layout), targets) for inputs, targets in self.batches]
        self._state = {name: in_layout(tensor.detach(), layout) for name, tensor in named_tensors(model).items()}
        self._flops = [{node: 2.0 * node_macs(node) for node in graph.compute} for graph in self.groups.graphs]
        self._choice: Choice | None = None
        self._check_replay()
        if self.precision != torch.float32 and not self._same_losses():
            self.precision = torch.float32
        self.prefix = self._prefix(self.precision, self._count_flops)

    def _prefix(self, precision: torch.dtype, count: Count) -> Prefix:
        inputs = [batch[0] for batch in self.batches]
        needed = {task.name: self._needed(task) for task in self.tasks}
        return Prefix(self.groups, inputs, needed, self.choice, count, self.cache_limit, precision)

    def _same_losses(self) -> bool:
        """Whether the losses on a few chunks are those of float32 but for `ROUNDING`. An operation may have no kernel
        for less."""
        try:
            exact, rounded = (self._first_losses(precision) for precision in (torch.float32, self.precision))
        except RuntimeError:
            return False
        return all(math.isclose(rounded[name], loss, rel_tol=ROUNDING) for name, loss in exact.items())

    def _first_losses(self, precision: torch.dtype) -> Losses:
        """Mean losses of the whole model on the first chunks."""
        names = [task.name for task in self.tasks]
        prefix = self._prefix(precision, lambda *_: None)
        numbers = range(min(FEWEST_CHUNKS, len(self.batches)))
        return means([self.task_losses(n, prefix.outputs(n, self.choice({}), names), names) for n in numbers])

    def _count_flops(self, position: int, calls: Collection[Node]) -> None:
        """Add the FLOPs of running some calls of a graph on one chunk."""
        self.spent.forward_flops += sum(self._flops[position][call] for call in calls)

    def share(self, calls: Calls) -> float:
        """Of the FLOPs of a chunk, what some calls take."""
        taken = sum(flops[call] for flops, each in zip(self._flops, calls, strict=True) for call in each)
        return taken / max(sum(sum(flops.values()) for flops in self._flops), 1e-12)

    @property
    def samples(self) -> int:
        """Calibration samples in all."""
        return len(self.batches) * batch_size(self.batches[0][0])

    def state(self, keep: Keep) -> dict[str, Tensor]:
        """The model's parameters with a choice of channels masked."""
        return self._state | masked_state(self.groups.groups, keep, self._state)

    def choice(self, keep: Keep) -> Choice:
        """All that belongs to a choice of channels; made once while the same one is asked for."""
        if self._choice is None or self._choice.keep is not keep:
            self._choice = Choice(keep, self.state(keep), self.groups.gone(keep))
        return self._choice

    def chunk_losses(self, keep: Keep) -> Iterator[Losses]:
        """Each task's loss on one chunk after the other."""
        names = [task.name for task in self.tasks]
        for number in range(len(self.batches)):
            self.spent.evaluations += 1
            yield self.task_losses(number, self.prefix.outputs(number, self.choice(keep), names), names)

    def standing(self, keep: Keep) -> Standing:
        """Each task's mean loss; with a `confidence`, from no more chunks than it takes to know the difference from the
        reference to a hundredth of the loss."""
        seen = list[Losses]()
        for losses in self.chunk_losses(keep):
            seen.append(losses)
            if self.confidence is not None and len(seen) >= FEWEST_CHUNKS:
                found = self._estimates(seen)
                if all(each.variance**0.5 <= 0.01 * abs(each.value) for each in found.values()):
                    return found
        return self._estimates(seen)

    def _estimates(self, seen: Sequence[Losses]) -> Standing:
        return {task.name: self.estimate(task.name, [each[task.name] for each in seen]) for task in self.tasks}

    def estimate(self, task: str, seen: Sequence[float]) -> Estimate:
        """A task's mean loss over all chunks from the first, by the difference from the reference."""
        beside = [losses[task] for losses in self.reference]
        return estimate(seen, beside[: len(seen)], sum(beside) / max(len(beside), 1), len(self.batches))

    def at(self, keep: Keep, group: str, standing: Standing) -> Session:
        """Judge candidates of one group on top of a choice for the others, of whose losses so much is known."""
        return Session(self, keep, group, standing)

    def task_losses(self, number: int, outputs: Sequence[list[Any]], names: Collection[str]) -> Losses:
        """The losses of some tasks on one chunk."""
        tasks = [task for task in self.tasks if task.name in names]
        with torch.no_grad():
            predictions = pytree.tree_map_only(Tensor, float32, self._predictions(outputs, tasks))
            found = task_losses(predictions, self.batches[number][1], tasks)
        return {name: float(value) for name, value in found.items()}

    def _needed(self, task: Task) -> Calls:
        """The calls that a task's prediction is computed from, of each graph."""
        places = self._predictions([list(range(len(graph.outputs))) for graph in self.groups.graphs], [task])
        graphs = self.groups.graphs if len(self.groups.graphs) == 1 else [self.groups.graphs[self.tasks.index(task)]]

        def calls(graph: Graph) -> frozenset[Node]:
            if graph not in graphs:
                return frozenset()
            leaves = [leaf for leaf in pytree.tree_leaves(places[task.name]) if isinstance(leaf, int)]
            return ancestors(graph.outputs[leaf] for leaf in leaves) & frozenset(graph.compute)

        return [calls(graph) for graph in self.groups.graphs]

    def _check_replay(self) -> None:
        """The graph must compute what the module does; views that are written to in place can break that."""
        inputs, _ = self.batches[0]
        with evaluating(self.groups.model) as model:
            expected = predict(model, inputs, self.tasks)
        found = self._predictions(
            [masked.replay.run(inputs, self._state)[0] for masked in self.groups.masked], self.tasks
        )
        for task in self.tasks:
            for one, other in zip(_leaves(expected[task.name]), _leaves(found[task.name]), strict=True):
                size = float(one.abs().max()) if one.is_floating_point() else 1.0
                if not torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4 * max(1.0, size)):
                    raise ModelError(
                        f'the traced graph does not compute what the model computes for task "{task.name}"',
                        "avoid writing in place into views (x[:, :k] += y); build a new tensor instead",
                    )

    def _predictions(self, values: Sequence[list[Any]], tasks: Sequence[Task]) -> dict[str, Any]:
        """Predictions of some tasks from the outputs of all graphs."""
        outputs = [graph.unflatten(found) for graph, found in zip(self.groups.graphs, values, strict=True)]
        if not takes_task(self.groups.model):
            return pick_tasks(outputs[0], tasks)
        found = {task.name: output for task, output in zip(self.tasks, outputs, strict=True)}
        return {task.name: found[task.name] for task in tasks}


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
