"""Stages: which channel groups share one width, found from the graph.

A group belongs to the tasks whose predictions depend on it. Groups of one task form that task's decoder; the others
form the encoder, one stage for each size of feature map, and where there is attention, one for each of its `parts`. As
this follows the graph and not names, it also holds where decoders read each other's features: what several tasks depend
on is part of the encoder then.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroup, ChannelGroups
from secateur.compress.pagcp.sequence import channel_step
from secateur.compress.slimmable.parts import Parts, heads_of, share_within
from secateur.core.elastic import Stage
from secateur.core.errors import BudgetError, ModelError
from secateur.core.inputs import takes_task
from secateur.profiles.count import outputs_of
from secateur.profiles.graph import Graph, ancestors, op_name, shape
from secateur.profiles.macs import arguments

WIDTHS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Rule:
    """How widths are laid out over a model.

    Args:
        widths: shares of the channels; 1 is added if it is missing.
        per_group: every channel group chooses its own width, instead of every stage.
        round_to: channel counts are multiples of up to this power of two, as devices like them.
        fixed: patterns of group names that keep all their channels.
        neck: keep the width of features that decoders read where a lone 1×1 convolution makes them, so that
            decoders do not depend on the encoder's widths.
        stream: the stream of a transformer changes its width too. It is what all blocks and decoders read: a model
            loses far more by it than by fewer heads and narrower MLPs.
    """

    widths: tuple[float, ...] = WIDTHS
    per_group: bool = False
    round_to: int = 8
    fixed: tuple[str, ...] = ()
    neck: bool = True
    stream: bool = False

    def __post_init__(self) -> None:
        for width in self.widths:
            if not 0 < width <= 1:
                raise BudgetError(f"a width is {width:g}", "widths are shares of the channels: above 0, at most 1")
        object.__setattr__(self, "widths", tuple(sorted({*map(float, self.widths), 1.0})))
        if len(self.widths) < 2:
            raise BudgetError("there is one width only", "give several, for example: 0.25,0.5,0.75,1")
        if self.round_to < 1:
            raise BudgetError(f"round_to is {self.round_to}", "give at least 1")


def find_stages(groups: ChannelGroups, tasks: Sequence[str], rule: Rule) -> tuple[Stage, ...]:
    """The stages of a traced model, encoder first, each in the order of computation.

    Raises:
        ModelError: nothing of the model is elastic, or no width but the full one is left after rounding.
        BudgetError: a pattern of `fixed` that names nothing.

    Warns:
        UserWarning: widths of a stage that round to the same channels; they count as one.
    """
    parts = Parts.of(groups)
    elastic = _elastic(groups, tasks, rule, parts)
    if not elastic:
        raise ModelError("no channel of the model can change its width", "secateur inspect shows why, group by group")
    members: dict[_Key, list[str]] = {}
    for name, key in _keys(groups, elastic, tasks, parts, per_group=rule.per_group).items():
        members.setdefault(key, []).append(name)
    shared = [key for key in members if _is_shared(key[0], tasks)]
    ordered = [*shared, *(key for task in tasks for key in members if key[0] == {task} and key not in shared)]
    names = _names(ordered, members, shared, rule.per_group)
    stages = [
        _stage(names[key], tuple(t for t in tasks if t in key[0]), [groups[m] for m in members[key]], rule, parts)
        for key in ordered
    ]
    found = tuple(stage for stage in stages if len(stage.widths) > 1)
    if not found:
        raise ModelError(
            f"every width of {', '.join(f'{width:g}' for width in rule.widths)} rounds to all channels",
            "name smaller widths, or a smaller round_to (--set round_to=1)",
        )
    return found


def needed_by(groups: ChannelGroups, tasks: Sequence[str]) -> dict[str, frozenset[str]]:
    """Parameter or buffer → the tasks whose predictions depend on it."""
    found: dict[str, set[str]] = {}
    for task, (graph, live) in _live(groups, tasks).items():
        for node, name in graph.state.items():
            if node in live:
                found.setdefault(name, set()).add(task)
    return {name: frozenset(needed) for name, needed in found.items()}


def _in_common_norms(
    groups: ChannelGroups, tasks: Sequence[str], needed: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    """Parameter → the tasks that share a batch norm behind it: its statistics depend on all of their widths, so that no
    decoder before it can be chosen by itself."""
    found: dict[str, frozenset[str]] = {}
    for graph, live in _live(groups, tasks).values():
        for node in graph.compute:
            mean = arguments(node).get("running_mean") if op_name(node) == "batch_norm" and node in live else None
            sharing = needed.get(graph.state.get(mean, ""), frozenset()) if mean is not None else frozenset()
            for before in ancestors([node]) if len(sharing) > 1 else ():
                if before in graph.state:
                    name = graph.state[before]
                    found[name] = found.get(name, frozenset()) | sharing
    return found


def _live(groups: ChannelGroups, tasks: Sequence[str]) -> dict[str, tuple[Graph, frozenset[Node]]]:
    """Each task's graph, and the nodes its prediction is computed from."""
    if takes_task(groups.model):
        return {task: (graph, graph.live) for task, graph in zip(tasks, groups.graphs, strict=True)}
    graph = groups.graphs[0]
    if len(tasks) == 1:  # whatever the model returns is that task's
        return {tasks[0]: (graph, graph.live)}
    return {task: (graph, ancestors(outputs_of(graph, task))) for task in tasks}


def _elastic(groups: ChannelGroups, tasks: Sequence[str], rule: Rule, parts: Parts) -> dict[str, frozenset[str]]:
    """Elastic groups in order of computation → the tasks that depend on them."""
    needed = needed_by(groups, tasks)
    common = _in_common_norms(groups, tasks, needed)
    fixed, found = groups.matching(rule.fixed) | (set() if rule.stream else parts.streams), {}
    fixed |= set() if rule.per_group else parts.whole
    for group in groups.prunable:
        own = frozenset(
            task
            for member in group.members
            for task in needed.get(member.parameter, frozenset()) | common.get(member.parameter, frozenset())
        )
        if own and group.name not in fixed and not (rule.neck and _is_neck(group, own, needed, groups)):
            found[group.name] = own
    return found


def _is_neck(
    group: ChannelGroup, own: frozenset[str], needed: Mapping[str, frozenset[str]], groups: ChannelGroups
) -> bool:
    """Whether decoders read these channels, and one 1×1 convolution alone makes them."""
    tensors = named_tensors(groups.model)
    makers = [
        tensors[member.parameter]
        for member in group.members
        if member.role == "out" and tensors[member.parameter].ndim > 1
    ]
    read_by = [needed.get(member.parameter, frozenset()) for member in group.members if member.role == "in"]
    lone = len(makers) == 1 and makers[0].ndim > 2 and all(size == 1 for size in makers[0].shape[2:])
    return lone and len(own) > 1 and bool(read_by) and all(len(tasks) == 1 for tasks in read_by)


def _sizes(groups: ChannelGroups, elastic: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """For each group the size of the feature map in which its channels first appear."""
    owner = {int(groups[name].components[0]): name for name in elastic}
    first, found = np.array(list(owner)), dict[str, tuple[int, ...]]()
    for node in (node for graph in groups.graphs for node in graph.compute):
        labels = groups.labels.get(node, {})
        if not isinstance(labels, dict):
            continue
        size = tuple(length for dim, length in enumerate(shape(node)) if dim and dim not in labels)
        for channels in labels.values():
            for component in np.intersect1d(groups.components.of[channels], first).tolist():
                found.setdefault(owner[component], size)
    return {name: found.get(name, ()) for name in owner.values()}


_Key = tuple[frozenset[str], object, str]
"""Tasks, what tells stages of the same tasks apart, and the part of it where it has parts."""


def _keys(
    groups: ChannelGroups,
    elastic: Mapping[str, frozenset[str]],
    tasks: Sequence[str],
    parts: Parts,
    *,
    per_group: bool,
) -> dict[str, _Key]:
    """The stage of each elastic group."""
    if per_group:
        return {name: (needed, name, "") for name, needed in elastic.items()}
    sizes = _sizes(groups, elastic)
    places = {name: (needed, sizes[name] if _is_shared(needed, tasks) else ()) for name, needed in elastic.items()}
    attention = parts.heads | parts.within.keys() | parts.streams
    attentive = {places[name] for name in elastic if name in attention and _is_shared(elastic[name], tasks)}
    return {name: (*place, parts[name] if place in attentive else "") for name, place in places.items()}


def _is_shared(needed: frozenset[str], tasks: Sequence[str]) -> bool:
    """Whether what these tasks need is part of the encoder."""
    return len(needed) > 1 or len(tasks) == 1


def _names(
    ordered: list[_Key], members: Mapping[_Key, list[str]], shared: list[_Key], per_group: bool
) -> dict[_Key, str]:
    if per_group:
        return {key: members[key][0] for key in ordered}
    tasks = {key: next(iter(key[0])) for key in ordered if key not in shared}
    prefix = "encoder" if not any(name.startswith("encoder") for name in tasks.values()) else "shared"
    places = list(dict.fromkeys(key[:2] for key in shared))
    numbered = {key: f"{prefix}{places.index(key[:2]) + 1}" for key in shared}
    return {key: tasks.get(key) or ".".join(filter(None, (numbered[key], key[2]))) for key in ordered}


def _stage(name: str, tasks: tuple[str, ...], members: list[ChannelGroup], rule: Rule, parts: Parts) -> Stage:
    sizes = {group.name: group.channels for group in members}
    channels = {each: _counts(each, sizes, rule, parts) for each in sizes}
    kept = {tuple(counts): width for *counts, width in zip(*channels.values(), rule.widths, strict=True)}
    if 1 < len(kept) < len(rule.widths):
        listed = ", ".join(f"{width:g}" for width in kept.values())
        warnings.warn(
            f"some widths of {name} round to the same channels; it has {listed} (a smaller round_to gives more)",
            stacklevel=4,
        )
    return Stage(name, tasks, tuple(kept.values()), dict(zip(channels, zip(*kept, strict=True), strict=True)))


def _counts(name: str, sizes: Mapping[str, int], rule: Rule, parts: Parts) -> list[int]:
    """The channels of a group at each width of its stage, of whose groups the sizes are given."""
    if name in sizes.keys() & set(parts.within.values()):
        return [heads_of(width, sizes[name]) for width in rule.widths]
    heads = sizes.get(parts.within.get(name, ""), 1)
    counts = [rounded(share_within(width, heads), sizes[name], rule.round_to) for width in rule.widths]
    return list(itertools.accumulate(counts, max))


def rounded(width: float, channels: int, round_to: int) -> int:
    """The channels of a width: a multiple of the group's step (`channel_step`), at least one step."""
    if width == 1:
        return channels
    step = channel_step(channels, round_to)
    return min(channels, max(step, int(width * channels / step + 0.5) * step))
