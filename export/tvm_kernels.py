"""Tensor programs that the TVM exporter brings along: what it hands to TVM instead of TVM's own definitions.

Convolutions (NHWC) and matrix products are one thing here, a *tile* product: some rows of the output (pixels, tokens)
times a panel of its columns (channels), kept in registers while the reduction runs. Whatever is constant is laid out
for that beforehand, in numpy:

- weights in panels `[columns / panel, ..., reduction, panel]`, filled up with zeros, so that any number of channels
  vectorises;
- rows that do not divide by the tile are computed again from the last row (`min(row, rows - 1)`) instead of being
  guarded in the inner loop; they are never written.

The schedule of these programs is in tvm_schedule.py. Reductions along rows (softmax, layer norm) are written in lanes,
and exp and erf as polynomials, since TVM calls libm for each number otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.export.runtime import Array

ROWS, LINES = "secateur.rows", "secateur.lines"
"""Annotations of a tile block: how many rows of the output it keeps in registers, of how many lines of a picture."""

DEPTHWISE = 8
"""Sums at a time in a depthwise convolution: its few steps are written out, and more would not stay in registers."""


@dataclass(frozen=True)
class Vectors:
    """What the CPU offers: floats in a vector register, and how many accumulators leave room for operands."""

    width: int
    accumulators: int


@dataclass(frozen=True)
class Tile:
    """Rows, and columns in vectors, that are kept in registers. More rows than a line of the output has are those of
    several whole lines."""

    rows: int
    vectors: int

    @classmethod
    def ranked(cls, rows: int, columns: int, cpu: Vectors, lines: int = 1, *, depthwise: bool = False) -> list[Tile]:
        """Tiles for an output of `lines` of `rows` x `columns`, from the least work to the most.

        Work is what is computed, filled-up rows and columns included, times what a step costs besides the
        multiplications: a load for each vector of weights, which come from further away than the values of the rows;
        a value for each row, which in a depthwise convolution is the vector itself; and waiting, where there are few
        accumulators. The factors were fitted to times of convolutions of 64 to 512 channels on an Intel Xeon, with
        vectors of 16 and of 8.
        """
        limit = min(cpu.accumulators, DEPTHWISE) if depthwise else cpu.accumulators
        far, spread, waiting = cpu.width / 16, 0.0 if depthwise else 0.3, 3.0

        def work(tile: Tile) -> float:
            panel = tile.vectors * cpu.width
            high = max(1, tile.rows // rows)
            wide = min(tile.rows, rows)
            covered = math.ceil(lines / high) * high * math.ceil(rows / wide) * wide
            padded = covered * math.ceil(columns / panel) * panel
            return padded * (1 + far / tile.rows + spread / tile.vectors + waiting / (tile.rows * tile.vectors))

        heights = [*range(1, min(rows, limit) + 1), *(rows * high for high in range(2, lines + 1))]
        tiles = [cls(r, v) for r in heights for v in (1, 2, 3, 4, 6, 8) if r * v <= limit]
        return sorted(tiles, key=work)


def panels(weight: Array, panel: int, lanes: int) -> Array:
    """`[..., reduction, columns]` → `[columns / panel, panel / lanes, ..., reduction, lanes]`, filled up with zeros."""
    columns = weight.shape[-1]
    count = math.ceil(columns / panel)
    padded = np.zeros((*weight.shape[:-1], count * panel), weight.dtype)
    padded[..., :columns] = weight
    strips = padded.reshape(*weight.shape[:-1], count, panel // lanes, lanes)
    return np.ascontiguousarray(np.moveaxis(strips, (-3, -2), (0, 1)))


def conv2d(x: Any, weight: Any, columns: int, tile: Tile, geometry: Geometry, groups: int = 1) -> Any:
    """NHWC convolution, weights in panels `[F / panel, strips, kh, kw, C / groups, lanes]`; an output `[N, H, W, F]`.

    With groups, a panel lies within one group.
    """
    from tvm import te

    count, strips, kh, kw, depth, lanes = map(int, weight.shape)
    panel = strips * lanes
    n, height, width = geometry.output(x, kh, kw)
    padded = geometry.pad(x, int(x.shape[3]))
    ry, rx, rc = (_axis(size, name) for name, size in (("ry", kh), ("rx", kw), ("rc", depth)))
    (sy, sx), (dy, dx) = geometry.strides, geometry.dilation
    lines = max(1, tile.rows // width)
    column, rows = _repeating(width, min(tile.rows, width))
    line, high = _repeating(height, lines)
    first = (lambda fo: fo * groups // count * depth) if groups > 1 else (lambda fo: 0)
    product = _compute(
        (n, high, rows, count, panel),
        lambda b, y, x_, fo, j: te.sum(
            padded[b, line(y) * sy + ry * dy, column(x_) * sx + rx * dx, first(fo) + rc]
            * weight[fo, j // lanes, ry, rx, rc, j % lanes],
            axis=[ry, rx, rc],
        ),
        name="tile",
        attrs={ROWS: min(tile.rows, width), LINES: lines},
    )
    return _compute(
        (n, height, width, columns), lambda b, y, x_, f: product[b, y, x_, f // panel, f % panel], name="untile"
    )


def depthwise(x: Any, weight: Any, columns: int, tile: Tile, geometry: Geometry) -> Any:
    """NHWC convolution of each channel by itself; weights `[C / panel, 1, kh, kw, panel]`."""
    from tvm import te

    count, _, kh, kw, panel = map(int, weight.shape)
    n, height, width = geometry.output(x, kh, kw)
    padded = geometry.pad(x, count * panel)
    ry, rx = _axis(kh, "ry"), _axis(kw, "rx")
    (sy, sx), (dy, dx) = geometry.strides, geometry.dilation
    column, rows = _repeating(width, tile.rows)
    product = _compute(
        (n, height, rows, count, panel),
        lambda b, y, x_, fo, j: te.sum(
            padded[b, y * sy + ry * dy, column(x_) * sx + rx * dx, fo * panel + j] * weight[fo, 0, ry, rx, j],
            axis=[ry, rx],
        ),
        name="tile",
        attrs={ROWS: tile.rows},
    )
    return _compute(
        (n, height, width, columns), lambda b, y, x_, f: product[b, y, x_, f // panel, f % panel], name="untile"
    )


def matmul(x: Any, weight: Any, columns: int, tile: Tile) -> Any:
    """`[..., K]` times weights in panels `[F / panel, strips, K, lanes]`: the leading dimensions are rows."""
    from tvm import te

    lead, depth = [int(size) for size in x.shape[:-1]], int(x.shape[-1])
    count, strips, _, lanes = map(int, weight.shape)
    panel = strips * lanes
    rc = _axis(depth, "rc")
    row, rows = _repeating(math.prod(lead), tile.rows)
    product = _compute(
        (rows, count, panel),
        lambda m, fo, j: te.sum(x[(*_unflat(row(m), lead), rc)] * weight[fo, j // lanes, rc, j % lanes], axis=[rc]),
        name="tile",
        attrs={ROWS: tile.rows},
    )

    def untile(*index: Any) -> Any:
        *where, f = index
        return product[_flat(where, lead), f // panel, f % panel]

    return _compute((*lead, columns), untile, name="untile")


def batched_matmul(a: Any, b: Any, tile: Tile, width: int) -> Any:
    """`[..., M, K]` times `[..., K, N]`, both computed: the right side is laid out in panels first."""
    from tvm import te, tirx

    lead = [max(int(p), int(q)) for p, q in zip(a.shape[:-2], b.shape[:-2], strict=True)]
    m, depth, n = int(a.shape[-2]), int(a.shape[-1]), int(b.shape[-1])
    panel = tile.vectors * width
    count, axes = math.ceil(n / panel), len(lead)

    def at(tensor: Any, where: Sequence[Any], *rest: Any) -> Any:
        inside = [0 if int(size) == 1 else index for size, index in zip(tensor.shape, where, strict=False)]
        return tensor[(*inside, *rest)]

    def pack(*index: Any) -> Any:
        *where, fo, k, j = index
        f = fo * panel + j
        value = at(b, where, k, f)
        return value if count * panel == n else tirx.if_then_else(f < n, value, tirx.const(0, b.dtype))

    packed = _compute((*lead, count, depth, panel), pack, name="pack")
    rc = _axis(depth, "rc")
    row, rows = _repeating(m, tile.rows)

    def multiply(*index: Any) -> Any:
        *where, r, fo, j = index
        return te.sum(at(a, where, row(r), rc) * packed[(*where, fo, rc, j)], axis=[rc])

    product = _compute((*lead, rows, count, panel), multiply, name="tile", attrs={ROWS: tile.rows})
    return _compute(
        (*lead, m, n), lambda *i: product[(*i[:axes], i[axes], i[-1] // panel, i[-1] % panel)], name="untile"
    )


@dataclass(frozen=True)
class Geometry:
    """Strides, padding (top, left, bottom, right) and dilation of a convolution."""

    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    def output(self, x: Any, kh: int, kw: int) -> tuple[int, int, int]:
        """Batch, height and width of the output for an input `[N, H, W, C]`."""
        n, h, w, _ = map(int, x.shape)
        top, left, bottom, right = self.padding
        height = (h + top + bottom - self.dilation[0] * (kh - 1) - 1) // self.strides[0] + 1
        width = (w + left + right - self.dilation[1] * (kw - 1) - 1) // self.strides[1] + 1
        return n, height, width

    def pad(self, x: Any, channels: int) -> Any:
        """The input with zeros around it, and with so many channels."""
        from tvm import topi

        top, left, bottom, right = self.padding
        more = channels - int(x.shape[3])
        if not (any(self.padding) or more):
            return x
        return topi.nn.pad(x, [0, top, left, 0], [0, bottom, right, more], name="pad")


def softmax(x: Any, width: int) -> Any:
    """Along the last axis."""
    from tvm import te, topi

    highest = _along_rows(x, lambda value: value, te.max, width, "highest")
    exps = _compute(x.shape, lambda *i: x[i] - highest[i[:-1]], name="shifted")
    exps = topi.fast_exp(exps)
    total = _along_rows(exps, lambda value: value, te.sum, width, "total")
    return _compute(x.shape, lambda *i: exps[i] / total[i[:-1]], name="softmax")


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float, width: int) -> Any:
    """Along the last axis, in two passes: mean first, then the deviations from it."""
    from tvm import te, tirx

    depth = int(x.shape[-1])
    mean = _along_rows(x, lambda value: value, te.sum, width, "sum")
    centred = _compute(x.shape, lambda *i: x[i] - mean[i[:-1]] / float(depth), name="centred")
    square = _along_rows(centred, lambda value: value * value, te.sum, width, "square")
    scale = _compute(
        x.shape[:-1], lambda *i: tirx.const(1, x.dtype) / te.sqrt(square[i] / float(depth) + epsilon), name="scale"
    )
    return _compute(x.shape, lambda *i: centred[i] * scale[i[:-1]] * gamma[i[-1]] + beta[i[-1]], name="layer_norm")


def gelu(x: Any) -> Any:
    """x · Φ(x), with erf as a rational polynomial."""
    from tvm import topi

    erf = topi.fast_erf(_compute(x.shape, lambda *i: x[i] * math.sqrt(0.5), name="scaled"))
    return _compute(x.shape, lambda *i: 0.5 * x[i] * (1.0 + erf[i]), name="gelu")


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    from tvm import topi

    exps = topi.fast_exp(_compute(x.shape, lambda *i: -x[i], name="negative"))
    return _compute(x.shape, lambda *i: 1.0 / (1.0 + exps[i]), name="sigmoid")


def _along_rows(x: Any, of: Callable[[Any], Any], reduce: Any, width: int, name: str) -> Any:
    """A reduction along the last axis, in `width` lanes where it divides, and then over the lanes."""

    lead, depth = list(x.shape[:-1]), int(x.shape[-1])
    if depth % width:
        whole = _axis(depth, "k")
        return _compute(lead, lambda *i: reduce(of(x[(*i, whole)]), axis=[whole]), name=name)
    step, lane = _axis(depth // width, "k"), _axis(width, "lane")
    lanes = _compute(
        (*lead, width), lambda *i: reduce(of(x[(*i[:-1], step * width + i[-1])]), axis=[step]), name=f"{name}_lanes"
    )
    return _compute(lead, lambda *i: reduce(lanes[(*i, lane)], axis=[lane]), name=name)


def _compute(shape: Sequence[Any], body: Callable[..., Any], name: str, attrs: dict[str, int] | None = None) -> Any:
    """`te.compute` with sizes in 64 bits, as the rest of TVM has them."""
    from tvm import te, tirx

    return te.compute([tirx.IntImm("int64", int(size)) for size in shape], body, name=name, attrs=attrs)


def _axis(size: int, name: str) -> Any:
    from tvm import te, tirx

    return te.reduce_axis((tirx.IntImm("int64", 0), tirx.IntImm("int64", size)), name)


def _repeating(size: int, tile: int) -> tuple[Callable[[Any], Any], int]:
    """How an index is kept below `size`, and how many indices there are when tiles fill it up."""
    from tvm import te

    count = math.ceil(size / tile) * tile
    return (lambda index: index) if count == size else (lambda index: te.min(index, size - 1)), count


def _unflat(index: Any, shape: Sequence[int]) -> list[Any]:
    found = []
    for size in reversed(shape[1:]):
        found.append(index % size)
        index = index // size
    return [index, *reversed(found)] if shape else []


def _flat(index: Sequence[Any], shape: Sequence[int]) -> Any:
    total: Any = 0
    for size, one in zip(shape, index, strict=True):
        total = total * size + one
    return total
