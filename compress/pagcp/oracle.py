"""The performance-aware oracle: every task's loss of the model without some channels, at the least cost.

Cheap by (a) masks instead of copies, (b) prefix caching: what a group cannot reach is computed once per chunk, and
(c) stopping early: candidates are compared with the model as pruned so far on the same samples, and a clear case is
decided on few of them. With `confidence` None every decision is what the whole calibration set says; refusals stop
early all the same, since a sum of non-negative losses above its limit cannot come back.
The forward FLOPs spent are counted, and so are those that the published loop would have spent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
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
from secateur.compress.dataflow.replay import Values
from secateur.compress.pagcp.prefix import Choice, Prefix
from secateur.compress.speed import fast_layout, in_layout
from secateur.core.errors import ModelError
from secateur.core.predict import batch_size, pick_tasks, predict, task_losses
from secateur.core.task import Batch, Task
from secateur.profiles.macs import node_macs

Losses = dict[str, float]
FEWEST_CHUNKS = 6
"""Chunks on which a candidate is judged at the least, so that their spread means something."""


@dataclass
class Spent:
    """Forward FLOPs: what was spent, and what trying every ratio in turn on a pruned copy would have."""

    forward_flops: float = 0.0
    published_loop_forward_flops: float = 0.0
    evaluations: int = 0
    not_monotone: int = 0


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is accepted, each task's loss as far as it was looked at, and at how many chunks."""

    accepted: bool
    losses: Losses
    chunks: int


@dataclass
class Oracle:
    """Evaluates channel choices of one traced model on fixed calibration chunks.

    Args:
        confidence: standard errors that a loss must be away from its limit to be decided on a part of the chunks.
    """

    groups: ChannelGroups
    batches: Sequence[Batch]
    tasks: Sequence[Task]
    cache_limit: int
    spent: Spent = field(default_factory=Spent)
    confidence: float | None = None

    def __post_init__(self) -> None:
        model = self.groups.model
        layout = fast_layout(model, self.batches[0][0], tuple(self.tasks))
        self.batches = [(in_layout(inputs, layout), targets) for inputs, targets in self.batches]
        self._state = {name: in_layout(tensor.detach(), layout) for name, tensor in named_tensors(model).items()}
        self._flops = [{node: 2.0 * node_macs(node) for node in graph.compute} for graph in self.groups.graphs]
        inputs = [batch[0] for batch in self.batches]
        self._choice: Choice | None = None
        self.prefix = Prefix(self.groups, inputs, self.choice, self._count_flops, self.cache_limit)
        self._check_replay()

    def _count_flops(self, position: int, calls: frozenset[Node] | None) -> None:
        """Add the FLOPs of running a graph, or some of its calls, on one chunk."""
        flops = self._flops[position]
        self.spent.forward_flops += sum(flops.values()) if calls is None else sum(flops[call] for call in calls)

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
        for number in range(len(self.batches)):
            self.spent.evaluations += 1
            yield self._task_losses(number, self.prefix.outputs(number, self.choice(keep)))

    def losses(self, keep: Keep, reference: Sequence[Losses]) -> Losses:
        """Each task's mean loss; with a `confidence`, from no more chunks than it takes to know the difference from a
        reference (the chunk losses of another choice) to a hundredth of the loss."""
        seen: list[Losses] = []
        for losses in self.chunk_losses(keep):
            seen.append(losses)
            if self.confidence is not None and len(seen) >= FEWEST_CHUNKS and self._known(seen, reference):
                break
        return self.estimate(seen, reference, means(reference))

    def _known(self, seen: list[Losses], reference: Sequence[Losses]) -> bool:
        estimate, errors = self.estimate(seen, reference, means(reference)), self.standard_errors(seen, reference)
        return all(errors[name] <= 0.01 * abs(value) for name, value in estimate.items())

    def estimate(self, seen: Sequence[Losses], before: Sequence[Losses], current: Losses) -> Losses:
        """Mean losses over all chunks: the mean itself when all were seen, else the `current` mean of what was there
        `before`, plus how much more was lost on the same samples (and no less than what was seen alone amounts to)."""
        found, share = means(seen), len(seen) / len(self.batches)
        if share == 1:
            return found
        there = means(before[: len(seen)])
        return {name: max(current[name] + mean - there[name], share * mean) for name, mean in found.items()}

    def standard_errors(self, seen: Sequence[Losses], before: Sequence[Losses]) -> Losses:
        """Of the mean difference from what was there before, for chunks drawn without replacement."""
        scale = math.sqrt((1 - len(seen) / len(self.batches)) / len(seen))
        pairs = list(zip(seen, before, strict=False))
        return {name: scale * statistics.stdev(one[name] - other[name] for one, other in pairs) for name in seen[0]}

    def at(self, keep: Keep, group: str, current: Losses) -> Session:
        """Judge candidates of one group on top of a choice for the others, whose mean losses are `current`."""
        return Session(self, keep, group, current)

    def _task_losses(self, number: int, outputs: Sequence[list[Any]]) -> Losses:
        with torch.no_grad():
            values = task_losses(self._predictions(outputs), self.batches[number][1], self.tasks)
        return {name: float(value) for name, value in values.items()}

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
        found = self._predictions([masked.replay.run(inputs, self._state)[0] for masked in self.groups.masked])
        for task in self.tasks:
            for one, other in zip(_leaves(expected[task.name]), _leaves(found[task.name]), strict=True):
                if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * max(1.0, float(one.abs().max()))):
                    raise ModelError(
                        f'the traced graph does not compute what the model computes for task "{task.name}"',
                        "avoid writing in place into views (x[:, :k] += y); build a new tensor instead",
                    )

    def _predictions(self, values: Sequence[list[Any]]) -> dict[str, Any]:
        """Task predictions from the outputs of all graphs."""
        outputs = [graph.unflatten(found) for graph, found in zip(self.groups.graphs, values, strict=True)]
        if len(outputs) == 1 and len(self.tasks) >= 1 and isinstance(outputs[0], Mapping):
            return pick_tasks(outputs[0], self.tasks)
        return {task.name: output for task, output in zip(self.tasks, outputs, strict=True)}


class Session:
    """Candidates of one group on top of a choice for the others. What a candidate was seen to do is not run again."""

    def __init__(self, oracle: Oracle, keep: Keep, group: str, current: Losses) -> None:
        self._oracle, self._group, self._current = oracle, group, current
        self._base = oracle.choice(keep)
        names = [member.parameter for member in oracle.groups[group].members]
        self._dirty = [masked.replay.reachable(names) for masked in oracle.groups.masked]
        self._before: list[Losses] = []
        self._seen: dict[tuple[int, ...], list[Losses]] = {}
        self._choices: dict[tuple[int, ...], Choice] = {}
        self._fresh: dict[tuple[int, ...], dict[int, list[Values]]] = {}

    def guess(self, kept: Sequence[int], limits: Losses) -> bool:
        """What the first chunk says of a candidate: no proof, but cheap."""
        candidate = tuple(kept)
        if candidate not in self._seen:
            self._look(candidate)
        estimate = self._estimate(self._seen[candidate][:1])
        return all(estimate[name] <= limit for name, limit in limits.items())

    def peek(self, kept: Sequence[int], chunks: int) -> Losses:
        """Each task's mean loss with a candidate, as the first chunks tell it."""
        candidate = tuple(kept)
        while len(self._seen.get(candidate, [])) < min(chunks, len(self._oracle.batches)):
            self._look(candidate)
        return self._estimate(self._seen[candidate][:chunks])

    def judge(self, kept: Sequence[int], limits: Losses) -> Verdict:
        """Whether every task's mean loss stays within its limit; looks at no more chunks than that takes."""
        candidate = tuple(kept)
        while True:
            seen = self._seen.get(candidate, [])
            accepted = self._decided(seen, limits)
            if accepted is False:
                self._drop(candidate)
            if accepted is not None:
                return Verdict(accepted, self._estimate(seen), len(seen))
            self._look(candidate)

    def close(self, chosen: Sequence[int] | None) -> None:
        """The group is decided: what the chosen candidate computed is the cache now, all else is dropped."""
        if chosen is not None:
            for number, fresh in self._fresh.pop(tuple(chosen), {}).items():
                self._oracle.prefix.adopt(number, self._choices[tuple(chosen)].keep, fresh)
        for candidate in list(self._fresh):
            self._drop(candidate)

    def _drop(self, candidate: tuple[int, ...]) -> None:
        for fresh in self._fresh.pop(candidate, {}).values():
            self._oracle.prefix.drop(fresh)

    def _look(self, candidate: tuple[int, ...]) -> None:
        """Run a candidate on its next chunk."""
        oracle, seen = self._oracle, self._seen.setdefault(candidate, [])
        number = len(seen)
        if number == len(self._before):
            self._before.append(oracle._task_losses(number, oracle.prefix.outputs(number, self._base)))
        if candidate not in self._choices:
            self._choices[candidate] = self._choose(candidate)
        run = oracle.prefix.run(number, self._base, self._choices[candidate], self._dirty)
        if run.fresh is not None:
            self._fresh.setdefault(candidate, {})[number] = run.fresh
        seen.append(oracle._task_losses(number, run.outputs))
        oracle.spent.evaluations += 1

    def _choose(self, candidate: tuple[int, ...]) -> Choice:
        base, groups, change = self._base, self._oracle.groups, {self._group: list(candidate)}
        keep = {**base.keep, **change}
        if not set(candidate) <= set(base.keep.get(self._group, candidate)):  # channels that were masked come back
            return Choice(keep, self._oracle.state(keep), groups.gone(keep))
        state = dict(base.state) | masked_state(groups.groups, change, base.state)
        return Choice(keep, state, groups.gone(keep))

    def _decided(self, seen: list[Losses], limits: Losses) -> bool | None:
        """True or False once it is clear, None before."""
        total = len(self._oracle.batches)
        if not all(math.isfinite(value) for losses in seen for value in losses.values()):
            return False
        if len(seen) == total:
            estimate = self._estimate(seen)
            return all(estimate[name] <= limit for name, limit in limits.items())
        if _exceeded(seen, limits, total):
            return False
        if self._oracle.confidence is None or len(seen) < min(FEWEST_CHUNKS, total):
            return None
        estimate, errors = self._estimate(seen), self._oracle.standard_errors(seen, self._before)
        margins = [(limits[name] - estimate[name]) / max(errors[name], 1e-12) for name in limits]
        needed = student(self._oracle.confidence, len(seen) - 1)
        if min(margins) > needed:
            return True
        return False if min(margins) < -needed else None

    def _estimate(self, seen: list[Losses]) -> Losses:
        return self._oracle.estimate(seen, self._before, self._current)


def student(z: float, freedom: int) -> float:
    """The quantile of Student's t that is as rare as `z` of a normal distribution: a spread that was estimated from few
    chunks is itself uncertain. Expansion of Cornish and Fisher to the third order (Abramowitz and Stegun, 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def means(losses: Sequence[Losses]) -> Losses:
    """Each task's mean over chunks."""
    return {name: statistics.fmean(chunk[name] for chunk in losses) for name in losses[0]}


def _exceeded(seen: list[Losses], limits: Losses, total: int) -> bool:
    """Whether the losses seen so far alone put a mean above its limit, given that losses are not negative."""
    if any(value < 0 for losses in seen for value in losses.values()):
        return False
    return any(sum(losses[name] for losses in seen) > limit * total for name, limit in limits.items())


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
