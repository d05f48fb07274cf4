"""Estimate: a predicted latency with the interval that it is expected to lie in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Milliseconds; `low` to `high` is meant to hold the measured figure nine times out of ten.

    `error_pct` is the median error of such predictions where they could be checked, or of this one where it is known
    to be less certain.
    """

    ms: float
    low: float
    high: float
    error_pct: float
    shares: dict[str, float]
    """Term → its share of the time."""
