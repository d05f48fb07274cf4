"""Intervals hold what they promise for networks that took no part, whatever the errors look like."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.profiles.latency.whole import FOLDS, fit, memory_share, spread_of


def test_a_spread_derived_by_hand() -> None:
    """Nineteen errors of the same size: it is their size, and half and nine of ten are within it."""
    found = spread_of(np.array([0.2, -0.2] * 9 + [0.2]), np.zeros(19))
    assert (found.base, found.memory) == (pytest.approx(0.2), 0.0)
    assert found.half(0.0) == pytest.approx(0.2)
    assert found.median(0.7) == pytest.approx(0.2), "whatever the share"


def test_the_rank_is_that_of_conformal_prediction() -> None:
    """Of 1, 2, ... 9 the tenth part that may be exceeded is none: ceil(0.9 * 10) = 9; half is the fifth."""
    found = spread_of(np.arange(1.0, 10.0), np.zeros(9))
    assert found.half(0.0) == pytest.approx(9.0)
    assert found.median(0.0) == pytest.approx(5.0)
    found = spread_of(np.arange(1.0, 20.0), np.zeros(19))
    assert found.half(0.0) == pytest.approx(18.0)


@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_nine_of_ten_of_what_was_not_seen_lie_within(tail: str) -> None:
    """Errors that grow with the share of memory, of either distribution; over many draws of a calibration."""
    random, held, narrow = np.random.default_rng(0), [], []
    for _ in range(200):
        shares = random.uniform(0, 1, 160)
        noise = random.standard_normal(160) if tail == "normal" else random.standard_t(3, 160)
        errors = (0.03 + 0.2 * shares) * noise
        found = spread_of(errors[:80], shares[:80])
        held.append(
            np.mean([abs(error) <= found.half(share) for error, share in zip(errors[80:], shares[80:], strict=True)])
        )
        narrow.append(found.half(0.1) / found.half(0.9))
    assert 0.88 <= np.mean(held) <= 0.94
    assert np.median(narrow) < 0.5, "what does not wait for memory is known better"


def made(networks: int, times: int, error: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Networks of two parts and their overheads, whose times are off by so much (a standard deviation)."""
    random = np.random.default_rng(4)
    sums = np.hstack(
        [
            random.uniform(0.2, 3.0, (networks, 2)),
            random.uniform(0.01, 0.05, (networks, 1)),
            np.full((networks, 1), 0.01),
        ]
    )
    fetch = random.uniform(0.0, 1.0, networks)
    ms = (sums[:, :2].sum(1) + 0.5 * fetch) * np.exp(error * random.standard_normal(networks))
    rows = np.repeat(np.arange(networks), times)
    return sums[rows], fetch[rows], ms[rows], rows.tolist()


def test_the_error_is_that_of_networks_left_out() -> None:
    """Measuring the same networks again and again tells nothing of other ones: the interval stays as wide."""
    once, often = (fit(*made(60, times, 0.1)).spread.half(0.5) for times in (1, 3))
    assert 0.12 < once < 0.25, "1.645 standard deviations are 0.16"
    assert often == pytest.approx(once, rel=0.15)
    assert fit(*made(60, 1, 0.0)).spread.half(0.5) < 0.03
    few = fit(*made(FOLDS // 2, 1, 0.1)).spread
    assert few.half(0.5) > few.median(0.5) > 0


def test_what_only_one_network_has_is_unknown_for_it() -> None:
    """Ten networks, each of a part of its own, take twice what their parts do: left out, each is off by log 2."""
    sums, ms = np.hstack([np.eye(10), np.zeros((10, 2))]), np.full(10, 2.0)
    assert fit(sums, np.zeros(10), ms, range(10)).spread.half(0.0) == pytest.approx(np.log(2), rel=1e-3)


def test_the_share_of_memory_is_a_share() -> None:
    assert memory_share(1.0, 3.0) == 0.75
    assert memory_share(0.0, 0.0) == 0.0
