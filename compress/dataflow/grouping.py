"""From components to groups: those that sit in the same parameters in the same way are the channels of one group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from secateur.compress.dataflow.groups import ChannelGroup, Groups, Index, Member, Role
from secateur.compress.dataflow.space import Channels, Components

Parameters = Mapping[tuple[str, int], Channels]
"""(parameter, dimension) → its channels."""


def grouped(parameters: Parameters, components: Components, roles: Mapping[tuple[str, int], Role]) -> Groups:
    """The groups, in the order of the parameters that make their channels; what no weight makes (a table of places, the
    norm of the input) is no group."""
    signatures, places = _places(parameters, components)
    by_signature: dict[Any, list[int]] = defaultdict(list)
    for component, signature in signatures.items():
        by_signature[signature, component in components.why].append(component)
    groups, names = [], Counter[str]()
    keys = list(parameters)
    for (signature, _), channels in by_signature.items():
        members = tuple(
            Member(keys[key][0], keys[key][1], roles.get(keys[key], "bound"), _stack(places, channels, key, count))
            for key, count in signature.counts
        )
        producers = [member for member in members if member.role == "out"]
        if not producers:
            continue
        name = _layer(producers[0].parameter)
        names[name] += 1
        group = ChannelGroup(
            name=name if names[name] == 1 else f"{name}#{names[name]}",
            channels=len(channels),
            members=members,
            components=np.array(channels, dtype=np.int64),
            why_not=_why_not(channels, components),
        )
        groups.append(group)
    return Groups([group for group in groups if not _is_hidden(group, groups, components)])


def _layer(parameter: str) -> str:
    """The layer of a weight, also of one that is parametrised; the name of a parameter that is in none."""
    path = parameter.rpartition(".")[0]
    return path.partition(".parametrizations.")[0] or parameter


def _is_hidden(group: ChannelGroup, groups: list[ChannelGroup], components: Components) -> bool:
    """Whether a group is but one axis of dimensions that another one says more about: the q, k and v of a fused
    projection, say, beside its heads."""
    if group.prunable or not components.parts_of_pairs.issuperset(group.components.tolist()):
        return False
    places = {(member.parameter, member.dim) for member in group.members}
    return any(
        (other.prunable or other.channels > group.channels) and places & {(m.parameter, m.dim) for m in other.members}
        for other in groups
    )


class _Signature(NamedTuple):
    """What the channels of one group have in common: (parameter key, count) of where they sit, and which axes of
    products they are. As many heads as each is wide would else be one group with the widths."""

    counts: tuple[tuple[int, int], ...]
    axes: frozenset[int]


def _places(
    parameters: Parameters, components: Components
) -> tuple[dict[int, _Signature], dict[tuple[int, int], list[int]]]:
    """For every component that can be cut its signature, and its indices in each parameter, those of the pairs that go
    with it included."""
    parts = components.parts()
    counts: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    axes: dict[int, set[int]] = defaultdict(set)
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, channels in enumerate(parameters.values()):
        for index, component in enumerate(components.of[channels].tolist()):
            for axis, part in enumerate(parts.get(component, (component,))):
                counts[part][key] += 1
                axes[part].add(axis)
                places[part, key].append(index)
    found = {part: _Signature(tuple(own.items()), frozenset(axes[part])) for part, own in counts.items()}
    return found, places


def _stack(places: dict[tuple[int, int], list[int]], channels: list[int], key: int, count: int) -> Index:
    table = [places[component, key] for component in channels]
    return np.array(table, dtype=np.int64).reshape(len(channels), count)


def _why_not(channels: list[int], components: Components) -> str:
    reasons = Counter(components.why[component] for component in channels if component in components.why)
    if reasons:
        return reasons.most_common(1)[0][0]
    return "a single channel" if len(channels) < 2 else ""
