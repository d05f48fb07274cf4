"""The timing harness, on a clock that only moves when a call says so."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import repeat

import pytest

from secateur.profiles.timing import LEAST_ROUNDS, estimate, measure, sample, speedup, summarise


class Machine:
    """A clock, and calls that take the milliseconds they are told and leave their name in `log`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, durations_ms: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.now += next(durations_ms) / 1e3
            self.log.append(name)

        return run


def noisy(centre: float, spread: float, seed: int) -> Iterator[float]:
    draw = random.Random(seed)
    while True:
        yield centre * math.exp(draw.gauss(0, spread))


def test_steady_calls_stop_after_the_fewest_rounds() -> None:
    machine = Machine()
    samples = sample({"a": machine.call("a", repeat(8.0))}, warmup_s=0, clock=machine.clock)
    assert samples["a"] == pytest.approx([8.0] * LEAST_ROUNDS)


def test_each_round_runs_every_call_once_in_changing_order() -> None:
    machine = Machine()
    calls = {name: machine.call(name, noisy(5, 0.3, seed)) for seed, name in enumerate("abc")}
    sample(calls, warmup_s=0, limit_s=3, clock=machine.clock)
    rounds = ["".join(machine.log[i : i + 3]) for i in range(3, len(machine.log), 3)]  # after one warm-up each
    assert all(sorted(round_) == ["a", "b", "c"] for round_ in rounds)
    assert len(set(rounds)) == 6, "every order should occur"


def test_the_order_is_repeatable() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        calls = {name: machine.call(name, repeat(1.0)) for name in "ab"}
        sample(calls, warmup_s=0, seed=seed, clock=machine.clock)
        return machine.log

    assert order(1) == order(1) != order(2)


def test_warm_up_is_not_kept() -> None:
    machine = Machine()
    cold_then_warm = (value for durations in (repeat(50.0, 4), repeat(2.0)) for value in durations)
    samples = sample({"a": machine.call("a", cold_then_warm)}, warmup_s=0.2, clock=machine.clock)
    assert max(samples["a"]) == pytest.approx(2.0)


def test_noise_is_answered_with_repeats() -> None:
    def rounds(spread: float) -> int:
        machine = Machine()
        calls = {"a": machine.call("a", noisy(10, spread, 0))}
        samples = sample(calls, warmup_s=0, limit_s=1e6, precision=0.02, clock=machine.clock)["a"]
        assert estimate(samples).precision <= 0.02
        return len(samples)

    assert rounds(0.01) < rounds(0.1) < rounds(0.3)


def test_the_time_limit_ends_what_noise_does_not() -> None:
    machine = Machine()
    calls = {"a": machine.call("a", noisy(100, 1.0, 0))}
    sample(calls, warmup_s=0, limit_s=5, precision=1e-6, clock=machine.clock)
    assert 5 <= machine.now < 10


def test_a_call_slower_than_the_limit_is_still_repeated() -> None:
    machine = Machine()
    samples = sample({"a": machine.call("a", repeat(9e3))}, warmup_s=0, limit_s=1, clock=machine.clock)
    assert len(samples["a"]) == 3


def test_drift_does_not_touch_the_speed_up() -> None:
    """The machine slows down threefold while measuring: both calls suffer, their ratio does not."""
    machine = Machine()

    def drifting(base: float) -> Iterator[float]:
        while True:
            yield base * (1 + 2 * machine.now)

    calls = {"before": machine.call("before", drifting(2)), "after": machine.call("after", drifting(1))}
    samples = sample(calls, warmup_s=0, limit_s=1, precision=1e-6, clock=machine.clock)
    result = speedup(samples["before"], samples["after"])
    assert result.median == pytest.approx(2, rel=0.01)
    assert result.low <= 2 <= result.high
    assert result.precision < 0.01 < estimate(samples["before"]).precision


def test_speed_up_refuses_samples_of_different_runs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        speedup([1.0, 2.0], [1.0])


def test_summary() -> None:
    latency = summarise([float(value) for value in range(101)])
    assert (latency.median, latency.p10, latency.p90, latency.repeats) == (50, 10, 90, 101)


@pytest.mark.parametrize("count", [*range(6, 60), 100, 333, 1000])
def test_the_interval_covers_the_median_as_often_as_it_says(count: int) -> None:
    """Exactly, from the binomial distribution: at least 95 %, and one rank less would be too few."""
    interval = estimate(range(count))
    outside = int(interval.low)
    assert interval.high == count - 1 - outside

    def coverage(samples_outside: int) -> float:
        return 1 - 2 * sum(math.comb(count, k) for k in range(samples_outside + 1)) / 2**count

    assert coverage(outside) >= 0.95
    assert coverage(outside + 1) < 0.955


def test_an_interval_of_few_samples_is_their_range() -> None:
    assert (estimate([3, 1, 2]).low, estimate([3, 1, 2]).high) == (1, 3)
    one = estimate([4.0])
    assert (one.low, one.median, one.high, one.precision) == (4, 4, 4, 0)


def test_on_the_real_clock() -> None:
    latency = measure({"sum": lambda: sum(range(1000))}, warmup_s=0, limit_s=0.05)["sum"]
    assert 0 < latency.p10 <= latency.median <= latency.p90
    assert latency.repeats >= 3


def test_nothing_to_measure() -> None:
    assert measure({}) == {}
