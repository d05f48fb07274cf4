"""Alone: the model of some of its tasks, without the modules that only the others need."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from secateur.compress.channel_map import ChannelMap
from secateur.compress.experts.cutting import same_without
from secateur.compress.slimmable.space import Space
from secateur.core.task import Task


def others_out(model: nn.Module, space: Space, inputs: Any, tasks: Sequence[Task]) -> ChannelMap:
    """The map that takes modules of other tasks out of a model of the space, as far as it runs without them and
    computes the same. What no task needs (heads for training only) stays."""
    running, removed = {task.name for task in tasks}, list[str]()
    others = {name for name, needed in space.needed.items() if not running & needed}
    for path in _topmost(model, others):
        if same_without(model, (*removed, path), inputs, tasks):
            removed.append(path)
    return ChannelMap(removed_modules=tuple(removed))


def _topmost(module: nn.Module, names: Collection[str], path: str = "") -> Iterator[str]:
    """Paths of the largest modules all of whose parameters, of which they have some, are among the names."""
    prefix = f"{path}." if path else ""
    own = [f"{prefix}{name}" for name, _ in module.named_parameters()]
    if path and own and all(name in names for name in own):
        yield path
        return
    for name, child in module.named_children():
        yield from _topmost(child, names, f"{prefix}{name}")
