"""Prefix caching: every activation of the model as pruned so far, per calibration chunk, within a memory limit.

A candidate re-runs only what its parameters reach. An accepted choice leaves what it computed in the cache; chunks
that it was not run on follow when they are next used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.groups import Index, Keep
from secateur.compress.dataflow.replay import Values

Count = Callable[[int, "frozenset[Node] | None"], None]


@dataclass(frozen=True)
class Choice:
    """A choice of channels, the masked parameters that go with it, and the components that it removes."""

    keep: Keep
    state: Mapping[str, Tensor]
    gone: Index


@dataclass
class _Cached:
    """One chunk's activations for a choice of channels, one mapping per graph."""

    keep: Keep
    values: list[Values]


@dataclass(frozen=True)
class Run:
    """The outputs of all graphs on one chunk, and the activations computed for them, where memory allows to hold
    them."""

    outputs: list[list[Any]]
    fresh: list[Values] | None


class Prefix:
    """Runs the graphs on calibration chunks; `count(graph, calls)` is told what was run, None for all of it.

    Attributes:
        held: bytes of candidates' activations that wait for being adopted or dropped.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: Sequence[Any],
        choice_of: Callable[[Keep], Choice],
        count: Count,
        limit: int,
    ) -> None:
        self._groups, self._inputs, self._choice_of, self._count, self._limit = groups, inputs, choice_of, count, limit
        self._chunks: dict[int, _Cached] = {}
        self._bytes = 0
        self.held = 0

    @property
    def filled(self) -> dict[int, Keep]:
        """What is cached: chunk → the choice of channels that its activations belong to, as it was handed in."""
        return {number: chunk.keep for number, chunk in self._chunks.items()}

    def refill(self, filled: Mapping[int, Keep]) -> None:
        """Stand where a stopped run stood; the FLOPs of getting there are not counted again."""
        self._chunks, self._bytes = {}, 0
        for number, keep in filled.items():
            self._fill(number, self._choice_of(keep), counted=False)

    def outputs(self, number: int, choice: Choice) -> list[list[Any]]:
        """The outputs of all graphs on one chunk for a choice of channels."""
        nothing = [frozenset[Node]()] * len(self._groups.masked)
        return self.run(number, choice, choice, nothing).outputs

    def run(self, number: int, base: Choice, candidate: Choice, dirty: Sequence[frozenset[Node]]) -> Run:
        """All graphs on one chunk for a candidate, re-running only `dirty` where the rest is cached for the `base` that
        it differs from. What is held of it must be adopted or dropped."""
        chunk = self._follow(number, base)
        holds = chunk is not None and self._bytes + self.held < self._limit
        results, fresh = [], list[Values]()
        for position, masked in enumerate(self._groups.masked):
            only = None if chunk is None else dirty[position]
            values = None if chunk is None else chunk.values[position]
            if values is not None and not only:
                results.append([values[node] for node in masked.replay.graph.outputs])
                fresh.append({})
                continue
            outputs, computed = masked.run(
                self._inputs[number], candidate.state, candidate.gone, only=only, cached=values,
                wanted=only if holds and only else (),
            )  # fmt: skip
            self._count(position, only)
            results.append(outputs)
            fresh.append(computed)
        if not holds:
            return Run(results, None)
        self.held += sum(map(_storage_bytes, fresh))
        return Run(results, fresh)

    def adopt(self, number: int, keep: Keep, fresh: Sequence[Values]) -> None:
        """Take over what a candidate computed on a chunk, as it is the choice now."""
        self.drop(fresh)
        chunk = self._chunks[number]
        for values, computed in zip(chunk.values, fresh, strict=True):
            values.update(computed)
        chunk.keep = keep

    def drop(self, fresh: Sequence[Values]) -> None:
        """What a candidate computed is not needed any more."""
        self.held -= sum(map(_storage_bytes, fresh))

    def _follow(self, number: int, choice: Choice) -> _Cached | None:
        """The chunk's activations for a choice; None when memory does not allow to hold them."""
        chunk = self._chunks.get(number)
        if chunk is None:
            return self._fill(number, choice) if self._bytes < self._limit else None
        changed = differences(chunk.keep, choice.keep)
        if changed:
            parameters = [member.parameter for name in changed for member in self._groups[name].members]
            inputs, state, gone = self._inputs[number], choice.state, choice.gone
            for position, masked in enumerate(self._groups.masked):
                dirty, values = masked.replay.reachable(parameters), chunk.values[position]
                _, fresh = masked.run(inputs, state, gone, only=dirty, cached=values, wanted=dirty)
                values.update(fresh)
                self._count(position, dirty)
            chunk.keep = choice.keep
        return chunk

    def _fill(self, number: int, choice: Choice, counted: bool = True) -> _Cached:
        """Compute all activations of a chunk."""
        inputs, chunk = self._inputs[number], _Cached(choice.keep, [])
        for position, masked in enumerate(self._groups.masked):
            _, values = masked.run(inputs, choice.state, choice.gone, wanted=masked.replay.graph.compute)
            if counted:
                self._count(position, None)
            self._bytes += _storage_bytes(values)
            chunk.values.append(values)
        self._chunks[number] = chunk
        return chunk


def differences(one: Keep, other: Keep) -> list[str]:
    """Names of the groups that two choices treat differently."""
    if one is other:
        return []
    return [name for name in one.keys() | other.keys() if not np.array_equal(one.get(name, ()), other.get(name, ()))]


def _storage_bytes(values: Values) -> int:
    """Memory of tensors, shared storage counted once."""
    leaves = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    return sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}.values())
