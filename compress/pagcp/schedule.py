"""The schedule of one sequence: in which order the groups are pruned, and how much each may cost.

Ye et al., "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs", T-PAMI 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PROBE_RATIO = 0.3
"""Share of a group's channels that is taken out on trial to order the groups by cost."""


def solve_lambda(local_tolerance: float, global_tolerance: float, groups: int) -> float:
    """λ such that ∏_{i<L} (1 + τ0·λ^i) = T, by bisection; the product grows with λ.

    When even λ → 0 exceeds T (a single group with τ0 ≥ T - 1), the smallest λ is returned.
    """
    target = math.log(global_tolerance)

    def log_product(scale: float) -> float:
        return sum(math.log1p(local_tolerance * scale**step) for step in range(groups))

    low, high = 1e-6, 1.0
    while log_product(high) < target and high < 1e3:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if log_product(middle) < target else (low, middle)
    return (low + high) / 2


def order(savings: Mapping[str, float], scale: float) -> list[str]:
    """Groups by the cost that a trial cut of each removes from the whole model: the costly ones first while
    tolerances shrink (λ ≤ 1), last while they grow."""
    sign = -1 if scale <= 1 else 1
    names = list(savings)
    return sorted(names, key=lambda name: (sign * savings[name], names.index(name)))
