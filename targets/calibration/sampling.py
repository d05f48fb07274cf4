"""Which operators to measure: drawn as real networks have them, then more of what is predicted worst.

Channel counts are mostly multiples of eight, as in networks, and often not, as after pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from secateur.profiles.latency.operators import Operator

LARGEST_MACS = 600e6
LARGEST_ELEMENTS = 4e6
LARGEST_SIZE = 160
KINDS = {
    "conv": 0.46,
    "stem": 0.12,
    "depthwise": 0.18,
    "elementwise": 0.04,
    "activation": 0.06,
    "pool": 0.05,
    "linear": 0.05,
    "concat": 0.04,
}
_FUNCTIONS = ("relu", "relu", "sigmoid", "hswish", "gelu", "swish")


def draw(random: np.random.Generator) -> Operator:
    """One operator that is not too large to measure."""
    while True:
        operator = _draw(random)
        if operator.macs <= LARGEST_MACS and operator.elements_in + operator.elements_out <= LARGEST_ELEMENTS:
            return operator


def near(operator: Operator, random: np.random.Generator) -> Operator:
    """One like another: other channels or another size of image."""
    ins, outs = operator.channels
    size = max(1, round(operator.output[1] * random.uniform(0.7, 1.3))) if len(operator.output) == 3 else 1
    stride = operator.stride
    if operator.kind == "linear":
        return linear(_nudge(ins, random), _nudge(outs, random))
    if operator.kind == "conv" and not operator.depthwise:
        return convolution(_nudge(ins, random), _nudge(outs, random), size, operator.kernel[0], stride)
    channels = _nudge(ins, random)
    if operator.depthwise:
        return convolution(channels, channels, size, operator.kernel[0], stride, depthwise=True)
    shape = (channels, size, size)
    inputs = tuple(shape for _ in operator.inputs)
    if operator.kind == "concat":
        return replace(operator, inputs=inputs, output=(2 * channels, size, size))
    if operator.kind == "pool":
        return pooling(channels, size, whole=operator.pixels == 1)
    return replace(operator, inputs=inputs, output=shape)


def convolution(ins: int, outs: int, size: int, kernel: int, stride: int, *, depthwise: bool = False) -> Operator:
    """`size` is the output's."""
    groups = ins if depthwise else 1
    shape = (ins, size * stride, size * stride)
    weights = ins * outs // groups * kernel * kernel
    return Operator("conv", (shape,), (outs, size, size), (kernel, kernel), stride, 1, groups, weights)


def linear(ins: int, outs: int) -> Operator:
    return Operator("linear", ((ins,),), (outs,), weights=ins * outs)


def pooling(channels: int, size: int, *, whole: bool) -> Operator:
    if whole:
        return Operator("pool", ((channels, size, size),), (channels, 1, 1))
    return Operator("pool", ((channels, 2 * size, 2 * size),), (channels, size, size), (2, 2), 2)


def _draw(random: np.random.Generator) -> Operator:
    kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
    size = round(float(np.exp(random.uniform(np.log(3), np.log(LARGEST_SIZE)))))
    ins, outs = _channels(random, size), _channels(random, size)
    if kind == "stem":
        kernel, stride = int(random.choice([3, 3, 3, 4, 5, 7])), int(random.choice([1, 2, 2]))
        return convolution(3, min(outs, 96), size, kernel, stride)
    if kind == "conv":
        kernel = int(random.choice([1, 1, 1, 1, 3, 3, 3, 3, 5, 7]))
        return convolution(ins, outs, size, kernel, 2 if random.random() < 0.25 else 1)
    if kind == "depthwise":
        stride = 2 if random.random() < 0.3 else 1
        return convolution(ins, ins, size, int(random.choice([3, 3, 5, 7])), stride, depthwise=True)
    if kind == "linear":
        return linear(_channels(random, 4), _channels(random, 4))
    if kind == "pool":
        return pooling(ins, size, whole=random.random() < 0.5)
    shape = (ins, size, size)
    if kind == "concat":
        return Operator("concat", (shape, shape), (2 * ins, size, size))
    if kind == "activation":
        return Operator("activation", (shape,), shape, function=str(random.choice(_FUNCTIONS)))
    return Operator("elementwise", (shape, shape), shape)


def _channels(random: np.random.Generator, size: int) -> int:
    """Fewer on large images, as networks have them."""
    most = min(1024.0, 16 * 1024 / max(size, 4))
    count = float(np.exp(random.uniform(np.log(8), np.log(max(most, 24)))))
    return max(8, round(count / 8) * 8) if random.random() < 0.5 else max(3, round(count))


def _nudge(count: int, random: np.random.Generator) -> int:
    return (
        max(3, count + int(random.integers(-9, 10)))
        if random.random() < 0.6
        else max(3, round(count * random.uniform(0.7, 1.4)))
    )


def worst(
    operators: Sequence[Operator], errors: Sequence[float], count: int, random: np.random.Generator
) -> list[Operator]:
    """Neighbours of operators, drawn by how wrong they are predicted; a quarter is drawn anew."""
    weight = np.minimum(np.abs(errors), 1.0) + 0.01
    picked = random.choice(len(operators), size=count - count // 4, p=weight / weight.sum())
    found = [near(operators[int(index)], random) for index in picked] + [draw(random) for _ in range(count // 4)]
    return [each for each in found if each.macs <= LARGEST_MACS and each.elements_in <= LARGEST_ELEMENTS]
