"""Parts of a stage with attention, each of which has a width of its own: the stream, its heads, what blocks hide.

    qkv: stream → 3 × heads × width of a head        mlp: stream → hidden → stream

A layer that is heads times their width wide must not lose a share of both: half the heads, each half as wide, are a
quarter. Heads go first, and their width makes up the difference: half of three heads of 32 are two of 24. Of other
products (a shuffle's) the factor with most channels changes its width, and the rest stay whole, as does the number of
experts: a router chooses among those that it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroup, ChannelGroups
from secateur.profiles.graph import op_name, shape
from secateur.profiles.macs import arguments

HEADS, HIDDEN = "heads", "hidden"
_PRODUCTS = frozenset(("matmul", "bmm", "einsum", "scaled_dot_product_attention"))
"""Ops that give one matrix for each head."""


@dataclass(frozen=True)
class Parts:
    """What the prunable groups of a model are.

    Attributes:
        streams: groups that layers of queries, keys and values read: what the blocks of a transformer add to.
        heads: groups that count the heads of attention.
        within: group of the channels of each head → the group that counts these heads.
        hidden: groups that one layer makes and one other reads, experts' too.
        whole: factors of other products, and groups that count experts.
    """

    streams: frozenset[str]
    heads: frozenset[str]
    within: dict[str, str]
    hidden: frozenset[str]
    whole: frozenset[str]

    @classmethod
    def of(cls, groups: ChannelGroups) -> Parts:
        factors = _factors(groups)
        heads, within, whole = _heads(groups, factors), dict[str, str](), set(_experts(groups))
        for names in sorted(factors, key=sorted):
            counting = sorted(names & heads)
            if counting:
                within.update(dict.fromkeys(names - heads, counting[0]))
            else:
                whole.update(sorted(names, key=lambda name: (groups[name].channels, name))[:-1])
        hidden = frozenset(group.name for group in groups.prunable if _is_hidden(group, groups))
        families = {name: {name, *(inner for inner in within if within[inner] == name)} for name in heads}
        return cls(_streams(groups, families), heads, within, hidden, frozenset(whole))

    def __getitem__(self, name: str) -> str:
        """HEADS, HIDDEN, or the stream, which has no name."""
        if name in self.streams:
            return ""
        return HEADS if name in self.heads or name in self.within else HIDDEN if name in self.hidden else ""


def heads_of(share: float, heads: int) -> int:
    """The fewest heads that are at least a share of all."""
    return max(1, math.ceil(share * heads - 1e-9))


def share_within(share: float, heads: int) -> float:
    """What each of them keeps of its channels, for all together to keep the share."""
    return min(1.0, share * heads / heads_of(share, heads))


def _heads(groups: ChannelGroups, factors: Collection[frozenset[str]]) -> frozenset[str]:
    """Factors that count the matrices of a product."""
    owner = _owners(groups, {name for names in factors for name in names})
    found = set[str]()
    for node in (node for graph in groups.graphs for node in graph.compute if op_name(node) in _PRODUCTS):
        labels = groups.labels.get(node, {})
        for dim, channels in labels.items() if isinstance(labels, dict) else ():
            if dim < len(shape(node)) - 2:
                found.update(owner[each] for each in groups.components.of[channels].tolist() if each in owner)
    return frozenset(found)


def _experts(groups: ChannelGroups) -> Iterator[str]:
    """Groups along the first dimension of experts' stacked weights."""
    owner = _owners(groups, [group.name for group in groups.prunable])
    for node in (node for graph in groups.graphs for node in graph.compute if op_name(node) == "routed_experts"):
        labels = groups.labels.get(arguments(node)["up"], {})
        if isinstance(labels, dict) and 0 in labels:
            yield from (owner[each] for each in groups.components.of[labels[0]].tolist() if each in owner)


def _streams(groups: ChannelGroups, families: Mapping[str, Collection[str]]) -> frozenset[str]:
    """Groups read by the layers that make heads; the heads themselves where code takes their sizes from the stream, so
    that they are its channels."""
    found = set[str]()
    for family in families.values():
        makers = {member.parameter for name in family for member in groups[name].members if member.role == "out"}
        read = {
            group.name
            for group in groups.prunable
            if any(member.role == "in" and member.parameter in makers for member in group.members)
        }
        found |= set(family) if read.intersection(family) else read
    return frozenset(found)


def _factors(groups: ChannelGroups) -> set[frozenset[str]]:
    """Sets of prunable groups of which each channel of some dimension is a product."""
    owner = _owners(groups, [group.name for group in groups.prunable])
    products = groups.components.parts().values()
    found = {frozenset(owner[leaf] for leaf in leaves if leaf in owner) for leaves in products}
    return {names for names in found if len(names) > 1}


def _owners(groups: ChannelGroups, names: Collection[str]) -> dict[int, str]:
    return {component: name for name in names for component in groups[name].components.tolist()}


def _is_hidden(group: ChannelGroup, groups: ChannelGroups) -> bool:
    tensors = named_tensors(groups.model)
    ends = [(member.role, member.parameter) for member in group.members if member.role in ("in", "out")]
    return sorted(role for role, _ in ends) == ["in", "out"] and all(tensors[name].ndim in (2, 3) for _, name in ends)
