"""Prefix caching: every activation of the model as pruned so far, per calibration chunk, within a memory limit.

A candidate re-runs only what its parameters reach, and of that only what the tasks depend on that are in question. An
accepted choice leaves what it computed in the cache; other chunks, and other tasks, follow when they are next used.
Of a chain of calls that are always run together (convolution, norm, ReLU), only the last one's value is held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.groups import Index, Keep
from secateur.compress.dataflow.replay import Values

Calls = list[frozenset[Node]]
"""Some calls of each graph."""
Count = Callable[[int, frozenset[Node]], None]


@dataclass(frozen=True)
class Choice:
    """A choice of channels, the masked parameters that go with it, and the components that it removes."""

    keep: Keep
    state: Mapping[str, Tensor]
    gone: Index


@dataclass
class _Cached:
    """One chunk's activations, one mapping per graph, and the choice that each task's were last computed for, in the
    order in which that was: what tasks share belongs to the later one."""

    values: list[Values]
    keeps: dict[str, Keep]

    def note(self, tasks: Collection[str], keep: Keep) -> None:
        for task in tasks:
            self.keeps.pop(task, None)
            self.keeps[task] = keep


@dataclass(frozen=True)
class Run:
    """The outputs of all graphs on one chunk (None where no task in question needs one), and the activations computed
    for them, where memory allows to hold them."""

    outputs: list[list[Any]]
    fresh: list[Values] | None


class Prefix:
    """Runs the graphs on calibration chunks; `count(graph, calls)` is told what was run.

    Attributes:
        needed: task → the calls that its prediction is computed from.
        held: bytes of candidates' activations that wait for being adopted or dropped.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: Sequence[Any],
        needed: Mapping[str, Calls],
        choice_of: Callable[[Keep], Choice],
        count: Count,
        limit: int,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """`precision`: of convolutions and matrix products."""
        self._groups, self._inputs, self.needed, self._choice_of = groups, inputs, needed, choice_of
        self._count, self._limit, self._precision = count, limit, precision
        self._chunks: dict[int, _Cached] = {}
        self._reached: dict[tuple[str, ...], Calls] = {}
        self._read = [self._read_elsewhere(position) for position in range(len(groups.masked))]
        self._bytes = 0
        self.held = 0

    @property
    def filled(self) -> dict[int, dict[str, Keep]]:
        """What is cached: chunk → task → the choice of channels, as it was handed in, in the order of computation."""
        return {number: dict(chunk.keeps) for number, chunk in self._chunks.items()}

    def refill(self, filled: Mapping[int, Mapping[str, Keep]]) -> None:
        """Stand where a stopped run stood; the FLOPs of getting there are not counted again."""
        self._chunks, self._bytes = {}, 0
        count, self._count = self._count, lambda *_: None
        for number, keeps in filled.items():
            for task, keep in keeps.items():
                self._follow(number, self._choice_of(keep), (task,))
        self._count = count

    def outputs(self, number: int, choice: Choice, tasks: Collection[str]) -> list[list[Any]]:
        """The outputs of all graphs that some tasks need on one chunk, for a choice of channels."""
        return self.run(number, choice, choice, self._nothing(), tasks).outputs

    def reach(self, names: Collection[str]) -> Calls:
        """The calls whose value depends on the channels of some groups."""
        key = tuple(names)
        if key not in self._reached:
            parameters = [member.parameter for name in key for member in self._groups[name].members]
            self._reached[key] = [masked.replay.reachable(parameters) for masked in self._groups.masked]
        return self._reached[key]

    def run(self, number: int, base: Choice, candidate: Choice, dirty: Calls, tasks: Collection[str]) -> Run:
        """All graphs on one chunk for a candidate, as far as some tasks need them, re-running only `dirty` where the
        rest is cached for the `base` that it differs from. What is held of it must be adopted or dropped."""
        chunk = self._follow(number, base, tasks)
        holds = chunk is not None and self._bytes + self.held < self._limit
        results, fresh = [], list[Values]()
        for position, wanted in enumerate(self._wanted(tasks)):
            values = None if chunk is None else chunk.values[position]
            only = wanted if values is None else wanted & dirty[position]
            read = only & self._read[position] if holds else ()
            outputs, computed = self._replay(position, number, candidate, only=only, cached=values, wanted=read)
            self._count(position, only)
            results.append(outputs)
            fresh.append(computed)
        if not holds:
            return Run(results, None)
        self.held += sum(map(_storage_bytes, fresh))
        return Run(results, fresh)

    def adopt(self, number: int, keep: Keep, fresh: Sequence[Values], tasks: Collection[str]) -> None:
        """Take over what a candidate computed on a chunk for some tasks, as it is the choice now."""
        self.drop(fresh)
        chunk = self._chunks[number]
        for values, computed in zip(chunk.values, fresh, strict=True):
            values.update(computed)
        chunk.note(tasks, keep)

    def drop(self, fresh: Sequence[Values]) -> None:
        """What a candidate computed is not needed any more."""
        self.held -= sum(map(_storage_bytes, fresh))

    def follows(self, choice: Choice, tasks: Collection[str]) -> bool:
        """Whether all chunks are cached for a choice, as far as some tasks need them."""
        return len(self._chunks) == len(self._inputs) and not any(
            any(self._stale(chunk, choice, tasks)) for chunk in self._chunks.values()
        )

    def _follow(self, number: int, choice: Choice, tasks: Collection[str]) -> _Cached | None:
        """The chunk's activations for a choice, as far as some tasks need them; None when memory does not allow to hold
        them."""
        chunk = self._chunks.get(number)
        if chunk is None:
            return self._fill(number, choice) if self._bytes < self._limit else None
        if all(chunk.keeps[task] is choice.keep for task in tasks):
            return chunk
        for position, stale in enumerate(self._stale(chunk, choice, tasks)):
            if stale:
                values, read = chunk.values[position], stale & self._read[position]
                _, fresh = self._replay(position, number, choice, only=stale, cached=values, wanted=read)
                values.update(fresh)
                self._count(position, stale)
        chunk.note(tasks, choice.keep)
        return chunk

    def _stale(self, chunk: _Cached, choice: Choice, tasks: Collection[str]) -> Calls:
        """What some tasks need that is not as in a choice. A call's value is as new as the last task that needs it."""
        stale, dated = self._nothing(), self._nothing()
        for task in reversed(chunk.keeps):
            reach = self.reach(differences(chunk.keeps[task], choice.keep))
            for position, needed in enumerate(self.needed[task]):
                stale[position] |= (needed - dated[position]) & reach[position]
                dated[position] |= needed
        return [each & wanted for each, wanted in zip(stale, self._wanted(tasks), strict=True)]

    def _wanted(self, tasks: Collection[str]) -> Calls:
        """What some tasks need."""
        return [
            frozenset[Node]().union(*(self.needed[task][position] for task in tasks))
            for position in range(len(self._groups.masked))
        ]

    def _nothing(self) -> Calls:
        return [frozenset()] * len(self._groups.masked)

    def _read_elsewhere(self, position: int) -> frozenset[Node]:
        """The calls of a graph whose value is an output, or read by a call that may be run without them: one that other
        groups reach, or other tasks need."""
        graph = self._groups.masked[position].replay.graph
        reaches = [self.reach((name,))[position] for name in self._groups]
        needs = [calls[position] for calls in self.needed.values()]
        runs_with = {node: tuple(node in calls for calls in (*reaches, *needs)) for node in graph.compute}
        read = {
            used
            for node in graph.compute
            for used in node.all_input_nodes
            if used in runs_with and runs_with[used] != runs_with[node]
        }
        return frozenset(read | (set(graph.outputs) & runs_with.keys()))

    def _replay(self, position: int, number: int, choice: Choice, **options: Any) -> tuple[list[Any], Values]:
        """Run one graph on one chunk for a choice of channels; options as of `Replay.run`."""
        inputs, fast = self._inputs[number], self._precision != torch.float32
        with torch.autocast(_device(choice.state), self._precision, enabled=fast):
            return self._groups.masked[position].run(inputs, choice.state, choice.gone, **options)

    def _fill(self, number: int, choice: Choice) -> _Cached:
        """Compute all activations of a chunk."""
        chunk = _Cached([], dict.fromkeys(self.needed, choice.keep))
        for position, masked in enumerate(self._groups.masked):
            calls = frozenset(masked.replay.graph.compute)
            _, values = self._replay(position, number, choice, wanted=self._read[position])
            self._count(position, calls)
            self._bytes += _storage_bytes(values)
            chunk.values.append(values)
        self._chunks[number] = chunk
        return chunk


def differences(one: Keep, other: Keep) -> list[str]:
    """Names of the groups that two choices treat differently."""
    if one is other:
        return []
    return [name for name in one.keys() | other.keys() if not np.array_equal(one.get(name, ()), other.get(name, ()))]


def _device(state: Mapping[str, Tensor]) -> str:
    return next(iter(state.values())).device.type


def _storage_bytes(values: Values) -> int:
    """Memory of tensors, shared storage counted once."""
    leaves = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    return sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}.values())
