"""What each op does to channels: one small function per family of ops."""

from secateur.compress.dataflow.rules import (
    contraction,
    indexing,
    normalise,
    pointwise,
    recurrent,
    reduce,
    reshape,
    routing,
    spatial,
)
from secateur.compress.dataflow.rules.contraction import refuse
from secateur.compress.dataflow.rules.registry import Labels, Op, Rule, find_rule, is_counting, rule, rules

__all__ = [
    "Labels", "Op", "Rule", "contraction", "find_rule", "indexing", "is_counting", "normalise", "pointwise",
    "recurrent", "reduce", "refuse", "reshape", "routing", "rule", "rules", "spatial",
]  # fmt: skip
