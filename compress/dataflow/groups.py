"""ChannelGroups: the answer of the dataflow. Which (parameter, dimension, indices) must be cut together, and which
must not be cut at all, and why.

    groups = trace(model, x)
    groups["encoder.layer1.0.conv1"].channels        64
    smaller = groups.cut({"encoder.layer1.0.conv1": keep})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Role = Literal["out", "in", "bound"]
"""`out`: the parameter produces the channels (filters); `in`: it consumes them; `bound`: one value per channel."""


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter's dimension that a group indexes.

    `index` has shape [channels, k]: the k indices of each channel (k > 1 after a flatten, say).
    """

    parameter: str
    dim: int
    role: Role
    index: Index


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of one kind, which can be removed one by one, each with all its indices in all members."""

    name: str
    channels: int
    members: tuple[Member, ...]
    components: Index
    why_not: str = ""

    @property
    def prunable(self) -> bool:
        return not self.why_not

    def __str__(self) -> str:
        rows = [f"{self.name}: {self.channels} channels" + (f", not prunable: {self.why_not}" if self.why_not else "")]
        rows += [f"  {member.role:5} {member.parameter} dim {member.dim}" for member in self.members]
        return "\n".join(rows)


Keep = Mapping[str, Sequence[int] | Index]
"""group name → channels of the group to keep, ascending."""


class Groups(Mapping[str, ChannelGroup]):
    """All groups of a model by name, in the order in which the model computes them."""

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self._groups = {group.name: group for group in groups}

    def __getitem__(self, name: str) -> ChannelGroup:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        return tuple(group for group in self.values() if group.prunable)


def removed(group: ChannelGroup, keep: Sequence[int] | Index) -> Index:
    """The channels of a group that are not kept.

    Raises:
        ValueError: nothing kept, an index out of range, or one given twice.
    """
    kept = np.asarray(keep, dtype=np.int64)
    if kept.size == 0:
        raise ValueError(f"group {group.name}: at least one channel must stay")
    if kept.min() < 0 or kept.max() >= group.channels or len(np.unique(kept)) != len(kept):
        raise ValueError(f"group {group.name}: keep must hold distinct indices below {group.channels}")
    return np.setdiff1d(np.arange(group.channels), kept)
