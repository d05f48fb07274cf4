"""What whole networks teach that operators alone do not: how their times add up, and how far a prediction may be off.

    fitted = fit(sums, fetch, ms, networks)      # one row for each measurement of a network
    fitted.spread.half(share)                    # logarithm: nine of ten unseen networks lie within it

The error is that of networks that took no part: a part of them is left out, with all their measurements, the rest
teaches, and so on in turns. Each network is measured at several times, so that what else the machine does is in it.
Its size may grow with the share of time in which weights come from memory. Split conformal prediction, local scale
(Lei et al., JASA 2018, section 5.2), over folds as in CV+ (Barber et al., Annals of Statistics 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SHRINK = 1.0
"""How strongly scales are held to 1."""
KNOTS = (0.0, 0.4, 0.7, 0.9)
"""Where weights that come from memory may get dearer: quantiles over the networks that were measured."""
FOLDS = 10
"""Into so many parts the networks go, of which each is left out once."""
LEAST = 0.01
"""Of a spread, in logarithms."""


class Spread(NamedTuple):
    """|log(measured / predicted)| of networks that took no part: `base + memory * share` is its usual size, `share`
    being that of the time that weights take to come from memory; half of the networks are within `half_of` times
    that, nine of ten within `nine_of`."""

    base: float = 0.08
    memory: float = 0.0
    half_of: float = 0.6745
    nine_of: float = 1.645

    def half(self, share: float) -> float:
        """Half of the interval that holds nine of ten."""
        return self.nine_of * (self.base + self.memory * share)

    def median(self, share: float) -> float:
        """The error that half of them exceed."""
        return self.half_of * (self.base + self.memory * share)


UNCHECKED = Spread()
"""Where no whole network was measured: a guess."""


class Whole(NamedTuple):
    """ms = scales @ sums + paid(fetch), `memory` being the (knot, slope) pairs of `paid`; the last two of `scales` are
    those of the number of operators and of the call itself."""

    scales: Array
    memory: tuple[tuple[float, float], ...]
    spread: Spread


def memory_share(warm_ms: float, fetch_ms: float) -> float:
    """Of what a network would take if all its weights came from memory, what they alone take."""
    return fetch_ms / max(warm_ms + fetch_ms, 1e-9)


def fit(sums: Array, fetch: Array, ms: Array, networks: Sequence[int]) -> Whole:
    """Learn from measured networks.

    Args:
        sums: shape (measurements, parts + 2): milliseconds of a network's operators by part, each alone with its
            weights in the caches; then what each operator and the call may add, in units of their own.
        fetch: milliseconds in which a network's weights come from memory, shape (measurements,).
        ms: measured.
        networks: the number of each measurement's network.
    """
    knots = np.array([float(np.quantile(fetch, knot)) if knot else 0.0 for knot in KNOTS])
    design = np.hstack([sums, np.maximum(fetch[:, None] - knots, 0.0)]) / ms[:, None]
    found = _solve(design, sums.shape[1])
    scales, slopes = found[: sums.shape[1]], found[sums.shape[1] :]
    shares = np.array([memory_share(*pair) for pair in zip(sums @ scales, fetch, strict=True)])
    off = _left_out(design, sums.shape[1], np.asarray(networks) % FOLDS)
    return Whole(scales, tuple(zip(knots.tolist(), slopes.tolist(), strict=True)), spread_of(off, shares))


def spread_of(errors: Array, shares: Array) -> Spread:
    """How far predictions are off, from errors (logarithms) of networks that took no part in them."""
    from scipy.optimize import nnls

    size = np.abs(errors)
    (base, memory), _ = nnls(np.stack([np.ones(len(size)), shares], axis=1), size)
    base = max(float(base), LEAST)
    ratios = np.sort(size / (base + memory * shares))
    half, nine = (ratios[min(int(np.ceil((len(ratios) + 1) * part)), len(ratios)) - 1] for part in (0.5, 0.9))
    return Spread(base, float(memory), float(half), float(nine))


def _solve(design: Array, parts: int) -> Array:
    """Coefficients that bring every row near 1: robust (Cauchy weights), scales held to 1, prices of memory to 0."""
    from scipy.optimize import lsq_linear

    knots = design.shape[1] - parts
    expected = np.array([*[1.0] * (parts - 2), *[0.0] * (2 + knots)])
    low = np.array([*[0.0] * (parts - 2), -2.0, -2.0, *[0.0] * knots])
    high = np.array([*[3.0] * parts, *[2.0] * knots])
    firmness = np.array([*[1.0] * (parts - 2), 0.1, 0.1, *[0.1] * knots])
    size = np.sqrt((design**2).mean(0)) * firmness
    tie = SHRINK * np.sqrt(len(design)) * np.diag(np.maximum(size, 1e-9))
    weight, found = np.ones(len(design)), expected
    for _ in range(6):
        rows, wanted = np.vstack([design * weight[:, None], tie]), np.concatenate([weight, tie @ expected])
        found = lsq_linear(rows, wanted, bounds=(low, high)).x
        rest = design @ found - 1
        scale = max(1.48 * float(np.median(np.abs(rest))), 0.01)
        weight = 1 / np.sqrt(1 + (rest / (2 * scale)) ** 2)
    return np.asarray(found)


def _left_out(design: Array, parts: int, fold: NDArray[np.int64]) -> Array:
    """log(measured / predicted) of each row, by what the other folds teach."""
    off = np.zeros(len(design))
    for turn in np.unique(fold):
        inside = fold == turn
        rest = design[~inside] if not inside.all() else design
        off[inside] = -np.log(np.maximum(design[inside] @ _solve(rest, parts), 0.01))
    return off
