"""A tile product of a network before its tile is chosen: what is multiplied, and the program for any tile.

The rule chooses the tile with the least work; tuning (tvm_tune.py) builds the same product with several tiles and
measures them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secateur.export import tvm_kernels as kernels
from secateur.export.runtime import Array
from secateur.export.tvm_kernels import Geometry, Tile, Vectors

Program = tuple[Callable[..., Any], Array | None]
"""A kernel, and its weights as that kernel wants them; None where both sides are computed."""


@dataclass(frozen=True)
class Product:
    """Rows (that one tile walks along) by columns, with so many multiplications in all."""

    name: str
    inputs: tuple[tuple[int, ...], ...]
    rows: int
    columns: int
    macs: int
    program: Callable[[Tile], Program] = field(compare=False)
    extra: str = ""
    lines: int = 1
    """Lines of so many rows each that one tile may hold several of."""

    @property
    def key(self) -> str:
        """The same for products that take the same time: shapes and geometry, not values."""
        shapes = " ".join("x".join(map(str, shape)) for shape in self.inputs)
        return f"{self.name} {shapes} to {self.columns} {self.extra}".strip()

    def tiles(self, cpu: Vectors) -> list[Tile]:
        """From the least work to the most."""
        return Tile.ranked(self.rows, self.columns, cpu, self.lines, depthwise=self.name == "depthwise")


Choose = Callable[[Product], Tile]
"""How the tile of a product is chosen."""


def by_rule(cpu: Vectors) -> Choose:
    """The tile with the least work."""
    return lambda product: product.tiles(cpu)[0]


def matrix(shape: tuple[int, ...], weight: Array, cpu: Vectors, name: str = "matmul") -> Product:
    """`[..., K]` by constant weights `[K, F]`."""
    depth, columns = weight.shape
    rows = math.prod(shape[:-1])

    def program(tile: Tile) -> Program:
        return (
            lambda x, w: kernels.matmul(x, w, columns, tile),
            kernels.panels(weight, tile.vectors * cpu.width, cpu.width),
        )

    return Product(name, (shape,), rows, columns, rows * depth * columns, program)


def batched(a: tuple[int, ...], b: tuple[int, ...], cpu: Vectors) -> Product:
    """`[..., M, K]` by `[..., K, N]`, both computed."""

    def program(tile: Tile) -> Program:
        return lambda p, q: kernels.batched_matmul(p, q, tile, cpu.width), None

    return Product("batched_matmul", (a, b), a[-2], b[-1], math.prod(a) * b[-1], program)


def convolution(
    shape: tuple[int, ...], out: tuple[int, ...], weight: Array, geometry: Geometry, groups: int, cpu: Vectors
) -> Product:
    """NHWC by HWIO: a matrix product, each channel by itself, or the general form."""
    kh, kw, depth, columns = weight.shape
    plain = (kh, kw) == (1, 1) and geometry.strides == (1, 1) and not any(geometry.padding)
    if plain and groups == 1:
        return matrix(shape, weight[0, 0], cpu, "conv2d")
    macs, extra = math.prod(out) * kh * kw * depth, f"{kh}x{kw} {geometry} {groups}"
    if depth == 1 and groups == columns == shape[3]:

        def each(tile: Tile) -> Program:
            panel = tile.vectors * cpu.width
            packed = kernels.panels(weight[:, :, 0], panel, panel)
            return lambda x, w: kernels.depthwise(x, w, columns, tile, geometry), packed

        return Product("depthwise", (shape,), out[2], columns, macs, each, extra)

    def general(tile: Tile) -> Program:
        panel, lanes = tile.vectors * cpu.width, cpu.width
        if groups > 1:  # a panel lies within one group
            panel = max(size for size in range(1, panel + 1) if (columns // groups) % size == 0)
            lanes = math.gcd(panel, lanes)
        return lambda x, w: kernels.conv2d(x, w, columns, tile, geometry, groups), kernels.panels(weight, panel, lanes)

    return Product("conv2d", (shape,), out[2], columns, macs, general, extra, lines=out[1])
