"""The space of channels: which indices of which tensor dimensions must live and die together.

Every index along a labelled dimension is a *channel*, an integer. Rules tie channels (they are the same thing seen
from two places) and fix channels (they may not be removed, and why). What is tied forms a component: the smallest
thing that can be cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Channels = NDArray[np.int64]
"""The channels along one dimension of a tensor, in order; one channel may stand at several indices."""


class Space:
    """All channels of a model, over all of its graphs."""

    def __init__(self) -> None:
        self.size = 0
        self._ties: list[tuple[Channels, Channels]] = []
        self._fixed: list[tuple[Channels, str]] = []

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

    def fix(self, channels: Channels, why: str) -> None:
        """Declare channels unremovable."""
        self._fixed.append((channels.ravel(), why))

    def components(self) -> Components:
        """Resolve all ties."""
        parent = np.arange(self.size, dtype=np.int64)
        if self._ties:
            left = np.concatenate([one for one, _ in self._ties])
            right = np.concatenate([other for _, other in self._ties])
            parent = _connected(parent, left, right)
        why: dict[int, str] = {}
        for channels, reason in self._fixed:
            for root in np.unique(parent[channels]):
                why.setdefault(int(root), reason)
        return Components(parent, why)


@dataclass(frozen=True)
class Components:
    """The resolved space: `of[channel]` is its component; `why[component]` is why it may not be removed."""

    of: Channels
    why: dict[int, str]


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
