"""Timing harness: warm-up, interleaved repeats in shuffled order, until the medians are known well enough.

    measure({"before": run_a, "after": run_b})["after"].median      # milliseconds

Machines are noisy and drift, so calls that are compared take turns: each round runs every call once, in random order,
and the samples of a round belong together. Confidence intervals are of order statistics, which assume nothing about
the distribution (David and Nagaraja, Order Statistics, 2003, section 7.1).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from secateur.core.costs import Latency

CONFIDENCE = 0.95
LEAST_ROUNDS = 10
Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Estimate:
    """A median and its confidence interval, in the unit of the samples."""

    median: float
    low: float
    high: float

    @property
    def precision(self) -> float:
        """Half the width of the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def measure(
    calls: Mapping[str, Call], *, warmup_s: float = 0.3, limit_s: float = 5.0, precision: float = 0.02, seed: int = 0
) -> dict[str, Latency]:
    """Latency of each call; see `sample` for the arguments."""
    samples = sample(calls, warmup_s=warmup_s, limit_s=limit_s, precision=precision, seed=seed)
    return {name: summarise(values) for name, values in samples.items()}


def sample(
    calls: Mapping[str, Call],
    *,
    warmup_s: float = 0.3,
    limit_s: float = 5.0,
    precision: float = 0.02,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    own_time: bool = False,
) -> dict[str, list[float]]:
    """Times of each call in milliseconds; the i-th samples of all calls were taken in the same round.

    Args:
        warmup_s: each call runs this long, and at least once, before anything is kept.
        limit_s: seconds for all rounds of all calls together; three rounds are taken in any case.
        precision: stop when the confidence interval of every median is within ± this share of it, but not before
            LEAST_ROUNDS rounds.
        seed: of the order of calls.
        clock: seconds, ever growing.
        own_time: the calls return their times in milliseconds, because they run elsewhere.
    """
    for call in calls.values():
        _warm_up(call, warmup_s, clock)
    order, samples = list(calls), {name: list[float]() for name in calls}
    shuffle, start, rounds, next_look = random.Random(seed).shuffle, clock(), 0, LEAST_ROUNDS  # noqa: S311
    while calls:
        shuffle(order)
        for name in order:
            samples[name].append(_own_time(calls[name]) if own_time else 1e3 * _time(calls[name], clock))
        rounds += 1
        if rounds >= 3 and clock() - start >= limit_s:
            break
        if rounds >= next_look:
            if all(estimate(values).precision <= precision for values in samples.values()):
                break
            next_look = rounds + rounds // 4  # looking costs a sort, and many looks make a lucky stop likelier
    return samples


def summarise(samples: Sequence[float]) -> Latency:
    """Median, 10th and 90th percentile of samples in milliseconds."""
    p10, median, p90 = np.percentile(samples, [10, 50, 90])
    return Latency(median=float(median), p10=float(p10), p90=float(p90), repeats=len(samples))


def speedup(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """How many times faster `after` is: the median of the ratios within each round, which drift does not touch.

    Raises:
        ValueError: when the two were not sampled in the same rounds.
    """
    return estimate([a / b for a, b in zip(before, after, strict=True)])


def estimate(samples: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The median and its interval between two order statistics.

    The number of samples below the true median is binomial with p = 1/2; its quantile is taken from the normal
    approximation with continuity correction. Below six samples no interval reaches 95 %: it is their whole range.
    """
    ordered = sorted(samples)
    count = len(ordered)
    half_width = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(count) / 2
    outside = max(math.floor((count + 1) / 2 - half_width) - 1, 0)  # samples beyond either end
    return Estimate(float(np.median(ordered)), ordered[outside], ordered[count - 1 - outside])


def _warm_up(call: Call, seconds: float, clock: Clock) -> None:
    start = clock()
    call()
    while clock() - start < seconds:
        call()


def _own_time(call: Call) -> float:
    return float(call())  # type: ignore[arg-type]


def _time(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start
