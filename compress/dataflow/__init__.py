"""Channel dataflow: which channels of a model belong together, and masking and cutting them."""

from secateur.compress.dataflow.channel_groups import ChannelGroups, MaskedModel
from secateur.compress.dataflow.groups import ChannelGroup, Keep, Member
from secateur.compress.dataflow.rules import Labels, Op, rule
from secateur.compress.dataflow.trace import from_graphs, trace

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "Keep",
    "Labels",
    "MaskedModel",
    "Member",
    "Op",
    "from_graphs",
    "rule",
    "trace",
]
