"""A schedule for every tensor program, without tuning: how its loops are ordered, kept in registers and shared out.

    module = schedule_module(module, Vectors(16, 24))

- Tile products (tvm_kernels.py): panel by panel, so that a panel of weights stays in the cache while the rows pass;
  where weights are few, some rows after the other, all panels for each, so that a thread reads what it wrote in the
  layer before. A tile of rows x panel is kept in registers through the whole reduction; what follows (bias, residual,
  activation) is done on the tile before it is written.
- Reductions: vectors along what is not reduced; steps of one row (softmax, layer norm) share the loop over rows.
- All else: one loop, vectorised, and in parallel where it is worth a thread's time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.export.tvm_kernels import LINES, ROWS, Vectors

PRODUCTS, NUMBERS = 1 << 18, 1 << 14
"""Least multiplications of a tile product, and least numbers of anything else, that are shared out among threads: some
six microseconds' work, against two or three for waking a thread."""
LIGHTER = 4
"""Multiplications of a tile product in the time of one in a depthwise convolution, whose operands serve no other."""
STREAMS, DEEP = 4, 64
"""Places at which a reduction of at least so many steps goes on at a time."""
SHARES = 16
"""Parts in which rows are shared out among threads."""
LIGHT = 1 << 17
"""Most weights that every thread reads as a whole: they stay in a core's cache."""
STRIP = 4
"""Lines of a depthwise convolution's output that are computed in one go."""


def schedule_module(module: Any, cpu: Vectors) -> Any:
    """The module with every function scheduled. One that no rule fits keeps TVM's own order of loops."""
    from tvm import s_tir, tirx

    for variable, function in list(module.functions_items()):
        if isinstance(function, tirx.PrimFunc) and not (function.attrs and "tirx.is_scheduled" in function.attrs):
            scheduled = _Function(s_tir.Schedule(function), cpu).scheduled()
            module[variable] = scheduled.with_attr("tirx.is_scheduled", True)
    return module


class _Function:
    """One tensor program while it is scheduled."""

    def __init__(self, schedule: Any, cpu: Vectors) -> None:
        self.sch, self.cpu = schedule, cpu

    def scheduled(self) -> Any:
        self._inline()
        tiles = [block for block in self._blocks() if ROWS in self.sch.get(block).annotations]
        if tiles:
            self._tile(tiles[0])
        elif any(map(self._reduces, self._blocks())):
            self._reduce()
        else:
            for block in self._blocks():
                self._pointwise(block)
        return self.sch.mod["main"]

    # -- what the rules share

    def _blocks(self) -> list[Any]:
        return list(self.sch.get_child_blocks(self.sch.get_sblock("root")))

    def _name(self, block: Any) -> str:
        return str(self.sch.get(block).name_hint)

    def _reduces(self, block: Any) -> bool:
        return any(var.iter_type == 2 for var in self.sch.get(block).iter_vars)

    def _extent(self, loop: Any) -> int:
        return int(self.sch.get(loop).extent)

    def _total(self, loops: Sequence[Any]) -> int:
        total = 1
        for loop in loops:
            total *= self._extent(loop)
        return total

    def _inline(self) -> None:
        """Pointwise steps become part of what reads them; what is read often and costly to repeat is kept."""
        from tvm.s_tir.schedule import ScheduleError

        for block in self._blocks()[:-1]:
            if not self._reduces(block) and not self._kept(block):
                try:
                    self.sch.compute_inline(block)
                except ScheduleError:
                    continue

    def _kept(self, block: Any) -> bool:
        """Zeros around a convolution's input, panels, and the exponentials and deviations that rows read twice."""
        name = self._name(block)
        return name.startswith(("pad", "pack")) or (
            name.startswith(("T_fast_exp", "compute", "centred", "scale"))
            and any(map(self._reduces, self.sch.get_consumers(block)))
        )

    # -- tile products

    def _tile(self, tile: Any) -> None:
        sch, notes = self.sch, dict(self.sch.get(tile).annotations)
        for note in notes:
            sch.unannotate(tile, note)
        out = self._blocks()[-1]
        before = [b for b in self._blocks() if b not in (tile, out) and self._name(b).startswith(("pad", "pack"))]
        loops, reductions = self._split_kinds(tile)
        *outer, row, column, lane = loops
        flat = len(outer) < len(self._out_shape(out)) - 2
        if flat:
            self._rows_by_columns(out)
        depthwise = not any(self._name_of(loop).startswith("rc") for loop in reductions)
        row, inner = sch.split(row, [None, int(notes[ROWS])])
        held = [*self._streams(reductions), *self._high(outer, notes), inner]
        lines = self._strips(outer) if depthwise else []
        sch.reorder(column, *outer, *lines, row, *reductions, *held, lane)
        if self._light(tile):
            shared, row = self._by_rows(column, outer, lines, row, flat)
            at = column
        else:
            shared, row = self._by_panels(column, outer, row, flat)
            at = shared
        for block in before:
            self._strip(block, at) if lines else self._pointwise(block)
        sch.reverse_compute_at(out, row, preserve_unit_loops=True)
        self._registers(sch.get_loops(out)[-1:], [])
        self._registers([lane], [*held, *(reductions if depthwise else ())])
        if self._total(sch.get_loops(tile)) * (LIGHTER if depthwise else 1) >= PRODUCTS:
            sch.parallel(shared)
        sch.decompose_reduction(tile, reductions[0])

    def _high(self, outer: list[Any], notes: dict[str, Any]) -> list[Any]:
        """The loop over the lines that a tile has, where it has several; the last of the outer loops goes by tiles."""
        if LINES not in notes:
            return []
        outer[-1], line = self.sch.split(outer[-1], [None, int(notes[LINES])])
        return [line]

    def _streams(self, reductions: list[Any]) -> list[Any]:
        """Make the last of some reductions go along STREAMS parts of itself side by side, so that weights come from as
        many places at once, of each of which the processor fetches ahead. The loop over the parts, if there is one."""
        size = self._extent(reductions[-1])
        parts = next(count for count in (STREAMS, STREAMS // 2, 1) if size % count == 0)
        if parts == 1 or size < DEEP:
            return []
        part, reductions[-1] = self.sch.split(reductions[-1], [parts, None])
        return [part]

    def _by_panels(self, column: Any, outer: list[Any], row: Any, flat: bool) -> tuple[Any, Any]:
        """Panel by panel, each shared out with the rows that pass it."""
        if flat:
            shared = self.sch.fuse(column, *outer, row)
            return shared, shared
        return self.sch.fuse(column, *outer), row

    def _by_rows(self, column: Any, outer: list[Any], lines: list[Any], row: Any, flat: bool) -> tuple[Any, Any]:
        """Some rows after the other, and for each all panels: a thread reads what it wrote in the layer before."""
        if flat or not outer:
            row, inner = self._shares(row)
            self.sch.reorder(*outer, row, column, inner)
            return self.sch.fuse(*outer, row), inner
        if not lines:
            outer[-1], line = self._shares(outer[-1])
            lines = [line]
        self.sch.reorder(*outer, column, *lines, row)
        return self.sch.fuse(*outer), row

    def _shares(self, loop: Any) -> tuple[Any, Any]:
        """A loop as SHARES equal parts, or somewhat more where it does not divide, and the loop over one of them."""
        part = _divisor(self._extent(loop), max(1, self._extent(loop) // SHARES))
        first, second = self.sch.split(loop, [None, part])
        return first, second

    def _light(self, tile: Any) -> bool:
        """Whether a product's weights are few beside the values that it reads and writes."""
        block = self.sch.get(tile)
        if len(block.reads) != 2:
            return False
        value, weight, result = (_size(each.source) for each in (*block.reads, block.writes[0]))
        return weight <= min(LIGHT, value + result)

    def _strips(self, outer: list[Any]) -> list[Any]:
        """Make the last of some loops go from strip to strip; the loop over a strip's lines, where there is one."""
        strip = _divisor(self._extent(outer[-1]), STRIP)
        if strip == 1:
            return []
        outer[-1], line = self.sch.split(outer[-1], [None, strip])
        return [line]

    def _strip(self, block: Any, loop: Any) -> None:
        """Zeros around the few lines that one turn of a loop reads: they stay in the cache until it does."""
        self.sch.compute_at(block, loop)
        self._vectorised(self.sch.get_loops(block)[-1])

    def _split_kinds(self, block: Any) -> tuple[list[Any], list[Any]]:
        """A block's loops: those of its output, and those of its reduction."""
        loops = self.sch.get_loops(block)
        kinds = [var.iter_type for var in self.sch.get(block).iter_vars]
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != 2]
        return spatial, [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]

    def _name_of(self, loop: Any) -> str:
        return str(self.sch.get(loop).loop_var.name)

    def _out_shape(self, block: Any) -> list[int]:
        return [int(size) for size in self.sch.get(block).writes[0].source.shape]

    def _rows_by_columns(self, block: Any) -> None:
        """All dimensions but the last become one, as they are in a tile of a matrix product."""
        from tvm.tirx import IndexMap

        lead = self._out_shape(block)[:-1]

        def flat(*index: Any) -> tuple[Any, Any]:
            row: Any = 0
            for size, one in zip(lead, index, strict=False):
                row = row * size + one
            return row, index[-1]

        self.sch.transform_block_layout(block, IndexMap.from_func(flat, ndim=len(lead) + 1))

    def _registers(self, vector: list[Any], unrolled: list[Any]) -> None:
        """Vectors along one loop, all others written out."""
        (loop,) = vector
        if self._extent(loop) > self.cpu.width:
            outer, loop = self.sch.split(loop, [None, self.cpu.width])
            unrolled = [*unrolled, outer]
        for each in unrolled:
            self.sch.unroll(each)
        self.sch.vectorize(loop)

    # -- reductions

    def _reduce(self) -> None:
        """The last step's rows are the outer loop; what leads to it is computed row by row inside."""
        sch = self.sch
        blocks = self._blocks()
        last = blocks[-1]
        shape = self._out_shape(last)
        rowwise = len(blocks) > 1 and all(len(self._split_kinds(b)[0]) >= len(shape) - 1 for b in blocks)
        if not rowwise or len(shape) < 2:
            for block in blocks:
                self._pointwise(block) if not self._reduces(block) else self._reduction(block)
            return
        loops = sch.get_loops(last)
        total = self._total(loops)
        row = sch.fuse(*loops[: len(shape) - 1])
        for block in reversed(blocks[:-1]):
            sch.compute_at(block, row, preserve_unit_loops=True)
        if self._extent(row) > 1 and 4 * total >= NUMBERS:
            sch.parallel(row)  # before the reductions are taken apart: TVM's proof that it may needs them whole
        for block in blocks:
            self._lanes(block)

    def _lanes(self, block: Any) -> None:
        """Vectors along the last loop of a block that stands inside of a row, steps of a reduction outside of them."""
        loops = self.sch.get_loops(block)
        count = sum(var.iter_type == 2 for var in self.sch.get(block).iter_vars)
        if not count:
            self._vectorised(loops[-1])
            return
        lane, steps = loops[-count - 1], loops[-count:]
        if self._extent(lane) > 1:
            self._vectors(lane, steps)
            self.sch.decompose_reduction(block, steps[0])

    def _reduction(self, block: Any) -> None:
        """A reduction by itself: along the last dimension of its output in vectors, the steps outside of them."""
        sch = self.sch
        spatial, steps = self._split_kinds(block)
        if not spatial:
            return
        *outer, lane = spatial
        lane = self._vectors(lane, steps)
        shared = sch.fuse(*outer) if outer else None
        if shared is not None and self._total([shared, lane, *steps]) >= NUMBERS:
            sch.parallel(shared)
        sch.decompose_reduction(block, steps[0])

    def _vectors(self, lane: Any, steps: list[Any]) -> Any:
        width = _divisor(self._extent(lane), 4 * self.cpu.width)
        outer, inner = self.sch.split(lane, [None, width])
        self.sch.reorder(outer, *steps, inner)
        if width > 1:
            self.sch.vectorize(inner)
        return outer

    # -- all else

    def _pointwise(self, block: Any) -> None:
        loops = self.sch.get_loops(block)
        if not loops:
            return
        total = self._total(loops)
        width = _divisor(self._extent(loops[-1]), self.cpu.width)
        if self._extent(loops[-1]) < self.cpu.width // 2 and self._name(block).startswith("T_transpose"):
            self._interleave(loops, total)
            return
        if width < self.cpu.width // 2 and not self._selects(block):
            width = _divisor(total, self.cpu.width)
        outer, inner = self.sch.split(self.sch.fuse(*loops), [None, width])
        if width > 1:
            self.sch.vectorize(inner)
        if total >= NUMBERS:
            self.sch.parallel(outer)

    def _interleave(self, loops: list[Any], total: int) -> None:
        """Few channels become the last dimension: number by number, as vectors would be gathered from all over."""
        *outer, _, last = loops
        self.sch.unroll(last)
        if outer and total >= NUMBERS:
            self.sch.parallel(self.sch.fuse(*outer))

    def _vectorised(self, loop: Any) -> None:
        width = _divisor(self._extent(loop), self.cpu.width)
        if width > 1:
            _, inner = self.sch.split(loop, [None, width])
            self.sch.vectorize(inner)

    def _selects(self, block: Any) -> bool:
        """Whether the block chooses between values by their place, as padding and concatenation do."""
        return "if_then_else" in str(self.sch.get(block).body)


def _size(buffer: Any) -> int:
    """How many numbers a buffer holds."""
    return math.prod(int(size) for size in buffer.shape)


def _divisor(size: int, limit: int) -> int:
    """The largest divisor of `size` up to `limit`."""
    return max(number for number in range(1, min(size, limit) + 1) if size % number == 0)
