"""The closed form: cycles of a program with one buffer of weights, or two.

    one buffer    Σ (load_i + compute_i)
    two buffers   load_1 + Σ max(compute_i, load_{i+1}) + compute_n

With two, the next stage's weights arrive while this one computes; a buffer is free again when its stage has computed,
so that compute_i and load_{i+1} always start together.
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.targets.edge_moe.program import Stage


def spans(stages: Sequence[Stage], *, double_buffer: bool = True) -> list[int]:
    """Each stage's share of the time, from the start of its computation to that of the next; the first one's share
    also holds its load."""
    if not double_buffer:
        return [stage.load + stage.compute for stage in stages]
    following = [stage.load for stage in stages[1:]]
    found = [max(stage.compute, load) for stage, load in zip(stages, [*following, 0], strict=False)]
    return [stages[0].load + found[0], *found[1:]] if stages else []


def cycles(stages: Sequence[Stage], *, double_buffer: bool = True) -> int:
    """Cycles from the first load to the last result."""
    return sum(spans(stages, double_buffer=double_buffer))
