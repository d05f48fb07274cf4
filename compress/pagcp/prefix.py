"""Prefix caching: every activation of the model as pruned so far, per calibration chunk, within a memory limit.

A candidate re-runs only what its parameters reach. An accepted choice updates a chunk when that chunk is next used.
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

State = Mapping[str, Tensor]
Count = Callable[[int, "frozenset[Node] | None"], None]


@dataclass
class _Cached:
    """One chunk's activations for a choice of channels, one mapping per graph."""

    keep: Keep
    values: list[Values]


class Prefix:
    """Runs the graphs on calibration chunks; `count(graph, calls)` is told what was run, None for all of it."""

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: Sequence[Any],
        state_of: Callable[[Keep], State],
        count: Count,
        limit: int,
    ) -> None:
        self._groups, self._inputs, self._state_of, self._count, self._limit = groups, inputs, state_of, count, limit
        self._chunks: dict[int, _Cached] = {}
        self._bytes = 0

    @property
    def filled(self) -> dict[int, Keep]:
        """What is cached: chunk → the choice of channels that its activations belong to, as it was handed in."""
        return {number: chunk.keep for number, chunk in self._chunks.items()}

    def refill(self, filled: Mapping[int, Keep]) -> None:
        """Stand where a stopped run stood; the FLOPs of getting there are not counted again."""
        self._chunks, self._bytes = {}, 0
        for number, keep in filled.items():
            self._fill(number, keep, counted=False)

    def outputs(self, number: int, keep: Keep) -> list[list[Any]]:
        """The outputs of all graphs on one chunk for a choice of channels."""
        nothing = [frozenset[Node]()] * len(self._groups.masked)
        return self.run(number, keep, self._state_of(keep), self._groups.gone(keep), nothing)

    def run(
        self, number: int, keep: Keep, state: State, gone: Index, dirty: Sequence[frozenset[Node]]
    ) -> list[list[Any]]:
        """The outputs of all graphs on one chunk with a candidate's `state`, re-running only `dirty` where the rest is
        cached for `keep`."""
        chunk = self._follow(number, keep)
        results = []
        for position, masked in enumerate(self._groups.masked):
            only = None if chunk is None else dirty[position]
            values = None if chunk is None else chunk.values[position]
            outputs, _ = masked.run(self._inputs[number], state, gone, only=only, cached=values)
            self._count(position, only)
            results.append(outputs)
        return results

    def _follow(self, number: int, keep: Keep) -> _Cached | None:
        """The chunk's activations for `keep`; None when memory does not allow to hold them."""
        chunk = self._chunks.get(number)
        if chunk is None:
            return self._fill(number, keep) if self._bytes < self._limit else None
        changed = _changed(chunk.keep, keep)
        if changed:
            parameters = [member.parameter for name in changed for member in self._groups[name].members]
            state, gone = self._state_of(keep), self._groups.gone(keep)
            for position, masked in enumerate(self._groups.masked):
                dirty, values = masked.replay.reachable(parameters), chunk.values[position]
                _, fresh = masked.run(self._inputs[number], state, gone, only=dirty, cached=values, wanted=dirty)
                values.update(fresh)
                self._count(position, dirty)
            chunk.keep = keep
        return chunk

    def _fill(self, number: int, keep: Keep, counted: bool = True) -> _Cached:
        """Compute all activations of a chunk."""
        state, gone = self._state_of(keep), self._groups.gone(keep)
        chunk = _Cached(keep, [])
        for position, masked in enumerate(self._groups.masked):
            _, values = masked.run(self._inputs[number], state, gone, wanted=masked.replay.graph.compute)
            if counted:
                self._count(position, None)
            self._bytes += _storage_bytes(values)
            chunk.values.append(values)
        self._chunks[number] = chunk
        return chunk


def _changed(one: Keep, other: Keep) -> list[str]:
    """Names of the groups that two choices treat differently."""
    if one is other:
        return []
    return [name for name in one.keys() | other.keys() if not np.array_equal(one.get(name, ()), other.get(name, ()))]


def _storage_bytes(values: Values) -> int:
    """Memory of tensors, shared storage counted once."""
    leaves = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    return sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}.values())
