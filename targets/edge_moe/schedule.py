"""The closed form: cycles of a program with one buffer of weights, or two.

    one buffer    Σ (load_i + compute_i)
    two buffers   load_1 + Σ max(compute_i, load_{i+1}) + compute_n

With two, the next stage's weights arrive while this one computes; a buffer is free again when its stage has computed,
so that compute_i and load_{i+1} always start together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from secateur.targets.edge_moe.program import Stage


def cycles(stages: Sequence[Stage], *, double_buffer: bool = True) -> int:
    """Cycles from the first load to the last result."""
    if not stages:
        return 0
    if not double_buffer:
        return sum(stage.load + stage.compute for stage in stages)
    overlapped = sum(max(one.compute, following.load) for one, following in itertools.pairwise(stages))
    return stages[0].load + overlapped + stages[-1].compute
