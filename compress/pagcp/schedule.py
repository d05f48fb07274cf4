"""The schedule of one sequence: in which order the groups are pruned, and how much each may cost.

Ye et al., "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs", T-PAMI 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PROBE_RATIO = 0.3
"""Share of a group's channels that is taken out on trial to order the groups by cost."""

LEAST_RISE = 1e-3
"""Relative rise of a loss below which rises are noise."""


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


def tolerances(savings: Mapping[str, float], price: float) -> dict[str, float]:
    """Each group's tolerance as a share of τ: (its saving / the largest saving)^price. At 1 every group may cost as
    much per saving, at 0 every group as much."""
    largest = max(savings.values(), default=0.0)
    return {name: (max(saving, 0.0) / largest) ** price if largest > 0 else 1.0 for name, saving in savings.items()}


def order(savings: Mapping[str, float], scale: float, rises: Mapping[str, float] | None = None) -> list[str]:
    """Groups by the cost that a trial cut of each removes from the whole model: the costly ones first while
    tolerances shrink (λ ≤ 1), last while they grow.

    Args:
        rises: how far the trial cut of each raises the loss; the order is then by cost removed per that.
    """
    sign = -1 if scale <= 1 else 1
    names = list(savings)
    worth = {name: saving / max(rises[name], LEAST_RISE) if rises else saving for name, saving in savings.items()}
    return sorted(names, key=lambda name: (sign * worth[name], names.index(name)))
