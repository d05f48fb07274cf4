"""Monotone repair: more width should not make a task worse; where a measured table says so, it is noise.

Lines of the table along one width are fitted by isotonic regression (pool adjacent violators; Barlow et al., 1972),
axis after axis, a few times over. How many pairs were the wrong way round before is reported.
"""

from __future__ import annotations

import numpy as np

from secateur.core.elastic.table import Floats, Ints

SWEEPS = 4


def repaired(values: Floats, coordinates: Ints, *, increasing: bool) -> tuple[Floats, int, int]:
    """Values [N] at width indices [N, S], made monotone along every index.

    Returns:
        the fitted values, how many neighbouring pairs violated the order, and how many pairs there were.
    """
    sign = 1.0 if increasing else -1.0
    fitted: Floats = sign * np.asarray(values, dtype=float)
    lines = [line for axis in range(coordinates.shape[1]) for line in _lines(coordinates, axis)]
    steps = [np.diff(fitted[line]) for line in lines]
    violations, pairs = sum(int((step < 0).sum()) for step in steps), sum(len(step) for step in steps)
    for _ in range(SWEEPS):
        for line in lines:
            fitted[line] = isotonic(fitted[line])
    return sign * fitted, violations, pairs


def _lines(coordinates: Ints, axis: int) -> list[Ints]:
    """Positions that differ along one axis only, in its order; lines of one are left out."""
    others = np.delete(coordinates, axis, axis=1)
    groups: dict[bytes, list[int]] = {}
    for position, key in enumerate(others):
        groups.setdefault(key.tobytes(), []).append(position)
    ordered = [np.array(sorted(each, key=lambda position: coordinates[position, axis])) for each in groups.values()]
    return [line for line in ordered if len(line) > 1]


def isotonic(values: Floats) -> Floats:
    """The nearest non-decreasing sequence in least squares."""
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        blocks.append((mean, count))
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks]).astype(float)
