"""What some of the calibration chunks tell of all of them: a mean loss, how far it may be off, and when that is enough.

Chunks are looked at in one fixed random order, so the first ones are a sample without replacement. A model is compared
with another one on the same chunks, whose mean is known better: their difference spreads far less than the losses do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Losses = dict[str, float]


class Estimate(NamedTuple):
    """A task's mean loss over all chunks, the variance of that figure, and the chunks that it comes from."""

    value: float
    variance: float
    chunks: int


Standing = dict[str, Estimate]
"""What is known of a model's losses, by task."""


def exactly(losses: Mapping[str, float]) -> Standing:
    """Losses that need no second look."""
    return {name: Estimate(value, 0.0, 0) for name, value in losses.items()}


def values(standing: Mapping[str, Any]) -> Losses:
    return {name: estimate[0] for name, estimate in standing.items()}


def written(losses: Losses) -> dict[str, float | None]:
    """Losses as JSON takes them: None for those that are not finite."""
    return {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}


def read(document: Mapping[str, float | None]) -> Losses:
    """What `written` wrote; what was not finite counts as infinite."""
    return {name: math.inf if loss is None else loss for name, loss in document.items()}


def means(losses: Sequence[Losses]) -> Losses:
    """Each task's mean over chunks."""
    return {name: float(np.mean([chunk[name] for chunk in losses])) for name in losses[0]}


def estimate(seen: Sequence[float], beside: Sequence[float], known: float, total: int) -> Estimate:
    """The mean over `total` chunks of what was `seen` on the first: the mean itself when all were, else what is `known`
    of the mean of another model, plus how much more than `beside` it was lost on the same chunks."""
    count = len(seen)
    if count == total or not len(beside):
        return Estimate(float(np.mean(seen)), 0.0 if count == total else np.inf, count)
    more = np.subtract(seen, beside[:count])
    mean = float(more.sum()) / count
    spread = float(np.square(more - mean).sum()) / (count - 1) if count > 1 else np.inf
    return Estimate(known + mean, spread / count * (1 - count / total), count)


def student(z: float, freedom: int) -> float:
    """The quantile of Student's t that is as rare as `z` of a normal distribution: a spread that was estimated from few
    chunks is itself uncertain. Expansion of Cornish and Fisher to the third order (Abramowitz and Stegun, 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
