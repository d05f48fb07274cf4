"""Space: the configurations of a traced model. A configuration is the width index of every stage."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from secateur.compress.channel_map import ChannelMap
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.groups import Index
from secateur.compress.slimmable.stages import Rule, find_stages, needed_by
from secateur.core.elastic import Stage
from secateur.core.elastic.table import is_shared

Configuration = tuple[int, ...]


class Space:
    """All configurations of a model, whose groups keep their first channels.

    Attributes:
        stages: encoder first, then each task's decoder.
    """

    def __init__(self, groups: ChannelGroups, tasks: Sequence[str], stages: Sequence[Stage]) -> None:
        self.groups, self.tasks, self.stages = groups, tuple(tasks), tuple(stages)

    @classmethod
    def of(cls, groups: ChannelGroups, tasks: Sequence[str], rule: Rule | None = None) -> Space:
        """The space of a traced model with automatic stages; see `find_stages` for what it raises."""
        return cls(groups, tasks, find_stages(groups, tasks, rule or Rule()))

    @cached_property
    def needed(self) -> dict[str, frozenset[str]]:
        """Parameter or buffer → the tasks whose predictions depend on it."""
        return needed_by(self.groups, self.tasks)

    @property
    def largest(self) -> Configuration:
        return tuple(len(stage.widths) - 1 for stage in self.stages)

    @property
    def smallest(self) -> Configuration:
        return (0,) * len(self.stages)

    def uniform(self) -> Iterator[Configuration]:
        """Configurations in which every stage has the same width, or the next larger one that it has, from small to
        large."""
        for width in sorted({width for stage in self.stages for width in stage.widths}):
            yield tuple(bisect_left(stage.widths, width) for stage in self.stages)

    def random(self, draw: np.random.Generator) -> Configuration:
        return tuple(int(draw.integers(len(stage.widths))) for stage in self.stages)

    def shared(self) -> tuple[int, ...]:
        """Positions of the stages that count as encoder."""
        return tuple(index for index, stage in enumerate(self.stages) if is_shared(stage, self.tasks))

    def decoder(self, task: str) -> tuple[int, ...]:
        """Positions of the stages that only one task depends on."""
        return tuple(i for i, stage in enumerate(self.stages) if stage.tasks == (task,) and i not in self.shared())

    def channels(self, configuration: Configuration) -> dict[str, int]:
        """Channel group → channels kept; groups that are not elastic are left out."""
        return {
            name: counts[index]
            for stage, index in zip(self.stages, configuration, strict=True)
            for name, counts in stage.channels.items()
        }

    def keep(self, configuration: Configuration) -> Mapping[str, Index]:
        """What `ChannelGroups.mask` and `.cut` take."""
        return {name: np.arange(count, dtype=np.int64) for name, count in self.channels(configuration).items()}

    def channel_map(self, configuration: Configuration) -> ChannelMap:
        return self.groups.channel_map(self.keep(configuration))
