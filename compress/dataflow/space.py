"""The space of channels: which indices of which tensor dimensions must live and die together.

Every index along a labelled dimension is a *channel*, an integer. Rules tie channels (they are the same thing seen
from two places), pair them (attention's channel h·D+d is head h and width d: it lives while both live) and fix them
(they may not be removed, and why). What is tied forms a component; components that are no pairs are the smallest
things that can be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Channels = NDArray[np.int64]
"""The channels along one dimension of a tensor, in order; one channel may stand at several indices."""

_DEEPEST = 16
"""Pairs of pairs: an attention's (q/k/v, (head, width)) is 2 deep. What is deeper refers to itself."""


class Space:
    """All channels of a model, over all of its graphs.

    Attributes:
        made, read: the channels along the dimensions in which weights make or read them.
    """

    def __init__(self) -> None:
        self.size = 0
        self.made: list[Channels] = []
        self.read: list[Channels] = []
        self._ties: list[tuple[Channels, Channels]] = []
        self._fixed: list[tuple[Channels, str]] = []
        self._pairs: list[tuple[Channels, Channels, Channels]] = []

    def fresh(self, count: int) -> Channels:
        """New channels, tied to nothing yet."""
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def fixed(self, count: int, why: str) -> Channels:
        """New channels that may not be removed."""
        channels = self.fresh(count)
        self.fix(channels, why)
        return channels

    def tie(self, one: Channels, other: Channels) -> None:
        """Declare two arrays of channels the same, element by element (with broadcasting)."""
        left, right = np.broadcast_arrays(one, other)
        self._ties.append((left.ravel(), right.ravel()))

    def tie_rows(self, channels: Channels, rows: int) -> Channels:
        """Cut channels into equal rows that keep equal sizes: channel i of every row is tied. Returns one row."""
        table = channels.reshape(rows, -1)
        self.tie(table[:1], table)
        first: Channels = table[0]
        return first

    def product(self, axes: Iterable[Channels]) -> Channels:
        """The channels of a table: entry (i, j, ..) lives while channel i of the first axis, j of the second .. live.
        Its shape has one dimension per axis. Entries of the same channels, as of the samples of a batch, are one."""
        *outer, table = axes
        for axis in reversed(outer):
            left, right = np.broadcast_arrays(axis.reshape(-1, *[1] * table.ndim), table[None])
            pairs = left.ravel() * self.size + right.ravel()
            _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
            order = np.argsort(first)
            made, kept = self.fresh(len(first)), first[order]
            self._pairs.append((made, left.ravel()[kept], right.ravel()[kept]))
            table = made[np.argsort(order)[which]].reshape(left.shape)
        return table

    def is_product(self, channels: Channels) -> bool:
        """Whether all of these channels were made by `product`."""
        starts = np.array([made[0] for made, _, _ in self._pairs], dtype=np.int64)
        ends = np.array([made[-1] for made, _, _ in self._pairs], dtype=np.int64)
        if len(starts) == 0:
            return False
        at = np.searchsorted(starts, channels, side="right") - 1
        return bool((at >= 0).all() and (channels <= ends[at]).all())

    def fix(self, channels: Channels, why: str) -> None:
        """Declare channels unremovable."""
        self._fixed.append((channels.ravel(), why))

    def components(self) -> Components:
        """Resolve all ties and pairs."""
        parent = np.arange(self.size, dtype=np.int64)
        parent = _connected(parent, *_columns(self._ties, 2))
        made, left, right = _columns(self._pairs, 3)
        parent = _same_parts(parent, made, left, right)
        found = Components(parent, *_leaves(*(parent[column] for column in (made, left, right))))
        for channels, reason in self._fixed:
            for root in found.leaves_of(np.unique(parent[channels])):
                found.why.setdefault(int(root), reason)
        return found


class Components:
    """The resolved space.

    Attributes:
        of: `of[channel]` is its component.
        why: component → why it may not be removed; components that cannot be cut by themselves (pairs) are not listed.
    """

    def __init__(self, of: Channels, whole: Channels, leaf: Channels, circular: Channels) -> None:
        self.of, self._whole, self._leaf = of, whole, leaf
        self.why: dict[int, str] = {int(root): "its channels are arranged in terms of themselves" for root in circular}

    @cached_property
    def pairs(self) -> frozenset[int]:
        """Components that are pairs of others."""
        return frozenset(self._whole.tolist())

    @cached_property
    def parts_of_pairs(self) -> frozenset[int]:
        """Components that pairs come down to."""
        return frozenset(self._leaf.tolist())

    def leaves_of(self, roots: Channels) -> Channels:
        """What can be cut of some components: themselves, or the parts of those that are pairs."""
        parts = self._leaf[np.isin(self._whole, roots)]
        return np.unique(np.concatenate([roots[~np.isin(roots, self._whole)], parts]))

    def parts(self) -> dict[int, list[int]]:
        """Pair → its parts, down to the ones that are no pairs; one that it is made of twice is there twice."""
        found: dict[int, list[int]] = {}
        for whole, leaf in zip(self._whole.tolist(), self._leaf.tolist(), strict=True):
            found.setdefault(whole, []).append(leaf)
        return found

    def closure(self, gone: Channels) -> Channels:
        """The components that go when some go: pairs go with either part."""
        return np.union1d(gone, self._whole[np.isin(self._leaf, gone)])


def _columns(rows: Sequence[tuple[Channels, ...]], count: int) -> tuple[Channels, ...]:
    if not rows:
        return (np.empty(0, dtype=np.int64),) * count
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def _same_parts(parent: Channels, made: Channels, left: Channels, right: Channels) -> Channels:
    """Two pairs that are tied have the same parts. Where a dimension is split in two different ways, this ties just
    what makes both splits come out even."""
    while len(made):
        _, first, which = np.unique(parent[made], return_index=True, return_inverse=True)
        first = first[which]
        edges = np.concatenate([left, right]), np.concatenate([left[first], right[first]])
        if np.array_equal(parent[edges[0]], parent[edges[1]]):
            break
        parent = _connected(parent, *edges)
    return parent


def _leaves(whole: Channels, left: Channels, right: Channels) -> tuple[Channels, Channels, Channels]:
    """Every pair with each of the parts it comes down to: columns (pair, part); and the parts that contain
    themselves."""
    pairs, first = np.unique(whole, return_index=True)
    left, right = left[first], right[first]
    owner, part = np.concatenate([pairs, pairs]), np.concatenate([left, right])
    times = np.ones(len(owner), dtype=np.int64)
    for _ in range(_DEEPEST):
        deeper = np.isin(part, pairs)
        if not deeper.any():
            break
        at = np.searchsorted(pairs, part[deeper])
        rows = np.stack([
            np.concatenate([owner[~deeper], owner[deeper], owner[deeper]]),
            np.concatenate([part[~deeper], left[at], right[at]]),
        ])  # fmt: skip
        (owner, part), times = _merged(rows, np.concatenate([times[~deeper], times[deeper], times[deeper]]))
    circular = np.unique(np.concatenate([owner[np.isin(part, pairs)], part[np.isin(part, pairs)]]))
    rows, times = _merged(np.stack([owner, part]), times)
    rows = np.repeat(rows, np.where(np.isin(rows[0], circular), 1, times), axis=1)
    return rows[0], rows[1], circular


def _merged(rows: Channels, times: Channels) -> tuple[Channels, Channels]:
    """Distinct columns, and how often each one stands there."""
    found, which = np.unique(rows, axis=1, return_inverse=True)
    return found, np.bincount(which.ravel(), weights=times, minlength=found.shape[1]).astype(np.int64)


def _connected(parent: Channels, left: Channels, right: Channels) -> Channels:
    """Connected components by hooking every edge to the smaller root and jumping pointers (Shiloach-Vishkin):
    a logarithmic number of vectorised rounds."""
    while True:
        roots_left, roots_right = parent[left], parent[right]
        low, high = np.minimum(roots_left, roots_right), np.maximum(roots_left, roots_right)
        open_edges = low != high
        if not open_edges.any():
            return parent
        left, right, low, high = (edges[open_edges] for edges in (left, right, low, high))
        np.minimum.at(parent, high, low)
        while not np.array_equal(parent, jumped := parent[parent]):
            parent = jumped
