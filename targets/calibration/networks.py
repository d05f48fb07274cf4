"""Random whole networks of the usual families, from which a calibration learns what operators alone do not tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secateur.targets.calibration.sampling import LARGEST_SIZE
from secateur.targets.calibration.sketch import Sketch, Value

Family = Callable[[Sketch, float, np.random.Generator], Value]
"""`family(sketch, width, random)` draws the body of a network whose widths are about so many times the usual."""


LARGEST_MACS, LARGEST_WEIGHTS = 400e6, 6e6


def network(random: np.random.Generator) -> Sketch:
    """A network of one of the families, with random widths, depth and size of image; from those whose weights fit the
    caches to those whose weights do not."""
    while True:
        family: Family = [_plain, _residual, _residual, _inverted, _two_branches][int(random.integers(5))]
        size = int(random.choice([32, 48, 64, 96, 128, LARGEST_SIZE]))
        sketch = Sketch((3, size, size), seed=int(random.integers(1 << 30)))
        body = family(sketch, float(np.exp(random.uniform(np.log(0.7), np.log(2.0)))), random)
        sketch.finish(sketch.linear(sketch.pool(body, whole=True), _width(random, 10, 200)))
        if sketch.macs <= LARGEST_MACS and sketch.weights <= LARGEST_WEIGHTS:
            return sketch


def _width(random: np.random.Generator, low: float, high: float) -> int:
    count = float(np.exp(random.uniform(np.log(low), np.log(high))))
    return max(4, round(count / 8) * 8) if random.random() < 0.4 else max(4, round(count))


def _plain(sketch: Sketch, width: float, random: np.random.Generator) -> Value:
    x, width = sketch.input, 16.0 * width
    for stage in range(int(random.integers(3, 5))):
        for _ in range(int(random.integers(1, 3))):
            x = sketch.conv(x, _width(random, width, 2.5 * width), 3, relu=True)
        x, width = sketch.pool(x) if stage < 4 else x, 1.8 * width
    return x


def _residual(sketch: Sketch, width: float, random: np.random.Generator) -> Value:
    x, width = sketch.conv(sketch.input, _width(random, 16, 48), 3, 2, relu=True), 24.0 * width
    for stage in range(int(random.integers(2, 5))):
        outs = _width(random, width, 2 * width)
        x = sketch.conv(x, outs, 1 if stage == 0 else 3, 1 if stage == 0 else 2, relu=True)
        for _ in range(int(random.integers(1, 3))):
            hidden = sketch.conv(x, _width(random, width, 2 * width), 3, relu=True)
            x = sketch.activation(sketch.add(sketch.conv(hidden, outs, 3), x), "relu")
        width *= 1.8
    return x


def _inverted(sketch: Sketch, width: float, random: np.random.Generator) -> Value:
    function = str(random.choice(["relu", "hswish"]))
    x, width = sketch.conv(sketch.input, _width(random, 12, 32), 3, 2, relu=True), 14.0 * width
    for _ in range(int(random.integers(2, 5))):
        outs, kernel = _width(random, width, 2 * width), int(random.choice([3, 3, 5]))
        for block in range(int(random.integers(1, 4))):
            hidden = _width(random, 3 * width, 7 * width)
            y = _active(sketch, sketch.conv(x, hidden, 1), function)
            y = _active(sketch, sketch.conv(y, hidden, kernel, 2 if block == 0 else 1, depthwise=True), function)
            y = sketch.conv(y, outs, 1)
            x = sketch.add(y, x) if block else y
        width *= 1.6
    return x


def _two_branches(sketch: Sketch, width: float, random: np.random.Generator) -> Value:
    x, width = sketch.conv(sketch.input, _width(random, 16, 48), 3, 2, relu=True), 24.0 * width
    for _ in range(int(random.integers(2, 5))):
        squeezed = sketch.conv(x, _width(random, width / 2, width), 1, relu=True)
        one = sketch.conv(squeezed, _width(random, width, 2 * width), 1, relu=True)
        three = sketch.conv(squeezed, _width(random, width, 2 * width), 3, relu=True)
        x, width = sketch.pool(sketch.concat(one, three)), 1.7 * width
    return x


def _active(sketch: Sketch, x: Value, function: str) -> Value:
    return sketch.activation(x, function)
