"""What each op does to channels: one small function per family of ops."""

from secateur.compress.dataflow.rules import contraction, normalise, pointwise, reduce, reshape, routing, spatial
from secateur.compress.dataflow.rules.contraction import refuse
from secateur.compress.dataflow.rules.registry import Labels, Op, find_rule, rule

__all__ = [
    "Labels", "Op", "contraction", "find_rule", "normalise", "pointwise", "reduce", "refuse", "reshape", "routing",
    "rule", "spatial",
]  # fmt: skip
