"""What a design takes of an FPGA, estimated from layer shapes, width and reuse factors; and reuse factors that fit.

    fit(layers, width, BOARDS["zcu104"])        # {"conv1": 12, ...} and the estimate

With a reuse factor R, a layer of M multiplications per output pixel has ceil(M / R) multipliers, each used R times. All
layers work at the same time, each on its own pixel; the slowest sets the pace, so every layer gets the largest R with
which it is no slower than that. An estimate: vendor tools may give 30 % more or less; only DSP counts are near exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any, cast

from torch import fx, nn

from secateur.core.errors import ExportError
from secateur.export.hls_graph import Prepared

USABLE = 0.8
"""Share of a board that a design may take: beyond, place and route rarely succeeds."""
CLOCK_NS = 5.0


@dataclass(frozen=True)
class Resources:
    """DSP blocks, memory blocks of 18 Kbit, look-up tables, flip-flops."""

    dsp: int
    bram18: int
    lut: int
    ff: int

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def over(self, limits: Resources) -> list[str]:
        """What is taken beyond the usable share of the limits, in words."""
        mine, theirs = asdict(self), asdict(limits)
        return [f"{value} of {theirs[key]} {key}" for key, value in mine.items() if value > USABLE * theirs[key]]


@dataclass(frozen=True)
class Board:
    """A board's name, part and limits."""

    name: str
    part: str
    limits: Resources
    source: str


BOARDS = {
    board.name: board
    for board in (
        Board("zcu102", "xczu9eg-ffvb1156-2-e", Resources(2520, 1824, 274080, 548160), "AMD DS891, ZU9EG"),
        Board("zcu104", "xczu7ev-ffvc1156-2-e", Resources(1728, 624, 230400, 460800), "AMD DS891, ZU7EV"),
        Board("kv260", "xck26-sfvc784-2LV-c", Resources(1248, 288, 117120, 234240), "AMD DS987, K26"),
        Board("pynq-z2", "xc7z020clg400-1", Resources(220, 280, 53200, 106400), "AMD DS190, Z-7020"),
    )
}


@dataclass(frozen=True)
class Layer:
    """A layer with weights: products of one output pixel are `inputs` × `outputs`; `pixels` of them are computed, of an
    image `columns` wide of which `rows` lines are kept."""

    name: str
    inputs: int
    outputs: int
    pixels: int
    columns: int = 1
    rows: int = 0
    channels: int = 1

    @property
    def multiplications(self) -> int:
        return self.inputs * self.outputs

    def reuse_factors(self) -> list[int]:
        """Those that hls4ml's kernels take: a divisor of the inputs, or the inputs times a divisor of the outputs."""
        return [
            *(factor for factor in range(1, self.inputs) if self.inputs % factor == 0),
            *(self.inputs * factor for factor in range(1, self.outputs + 1) if self.outputs % factor == 0),
        ]


@dataclass(frozen=True)
class Design:
    """Reuse factors, and what comes of them. `cycles` is the pace: from one image to the next."""

    reuse: dict[str, int]
    resources: Resources
    cycles: int

    @property
    def interval_ms(self) -> float:
        return self.cycles * CLOCK_NS / 1e6


def layers_of(prepared: Prepared) -> list[Layer]:
    """The layers with weights of a graph."""
    found = []
    for node in prepared.nodes:
        module, shape = prepared.module(node), node.meta.get("shape", ())
        if isinstance(module, nn.Linear):
            found.append(Layer(node.name, module.in_features, module.out_features, 1))
        elif isinstance(module, nn.Conv2d):
            kernel = cast("tuple[int, int]", module.kernel_size)
            _, height, width = shape
            columns = width * cast("tuple[int, int]", module.stride)[1] + 2 * int(cast(Any, module.padding)[1])
            inputs = module.in_channels * kernel[0] * kernel[1]
            found.append(
                Layer(
                    node.name, inputs, module.out_channels, height * width, columns, kernel[0] - 1, module.in_channels
                )
            )
    return found


def latency_cycles(prepared: Prepared, design: Design) -> int:
    """Cycles from the first pixel of an image to the last value of its last output.

    A layer gives its first value once it has seen the lines under its kernel (or all of its input, where it is dense),
    and is done no earlier than its input, nor than its own work takes. Control and the latency of operators are not in
    it; no hardware has confirmed it.
    """
    work = {layer.name: layer.pixels * design.reuse[layer.name] for layer in layers_of(prepared)}
    spans: dict[fx.Node, tuple[float, float]] = {}
    for node in prepared.nodes:
        inputs = [spans[each] for each in node.all_input_nodes]
        first = max((begin for begin, _ in inputs), default=0.0)
        last = max((end for _, end in inputs), default=float(prod(prepared.input_shape[1:])))
        first += _seen(prepared, node) * (last - first)
        spans[node] = first, max(last, first + work.get(node.name, 0))
    return ceil(max(spans[node][1] for node in prepared.outputs.values()))


def _seen(prepared: Prepared, node: fx.Node) -> float:
    """The share of its input that a node has seen when it gives its first value."""
    module = prepared.module(node)
    if isinstance(module, nn.Linear):
        return 1.0
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return 0.0
    kernel, padding = (each[0] if isinstance(each, tuple) else each for each in (module.kernel_size, module.padding))
    height = node.all_input_nodes[0].meta["shape"][-2]
    return float(max(int(kernel) - 1 - int(padding), 0) / height)


def estimate(layers: Iterable[Layer], reuse: Mapping[str, int], width: int) -> Resources:
    """Resources of all layers."""
    total = Resources(0, 0, 0, 0)
    for layer in layers:
        total += layer_resources(layer, reuse[layer.name], width)
    return total


def layer_resources(layer: Layer, reuse: int, width: int) -> Resources:
    """Resources of one layer: multipliers, the memory of its weights, lines that a convolution keeps, sums and control.

    Weights that are used more than once lie in memory blocks, one word (the weights of one cycle) after another; lines
    and short memories lie in look-up tables (32 or 64 bits each).
    """
    multipliers = ceil(layer.multiplications / reuse)
    word = multipliers * width
    lut = multipliers * (2 * width) + 64 * ceil(layer.channels * layer.rows * width * ceil(layer.columns / 32) / 64)
    blocks = 0
    if reuse > 64:
        blocks = ceil(word / 36) * ceil(reuse / 512)
    elif reuse > 1:
        lut += ceil(word * reuse / 64)
    dsp = multipliers * dsp_each(width)
    if dsp_each(width) == 0:
        lut += multipliers * ceil(width * width * 0.6)
    return Resources(dsp, blocks, lut + 300, 2 * multipliers * width + 300)


def dsp_each(width: int) -> int:
    """DSP blocks of one product: 27 × 18 bits fit into one (AMD UG579); narrow ones are built from look-up tables."""
    if width < 10:
        return 0
    return 1 if width <= 18 else 2 if width <= 27 else 4


def fit(layers: Sequence[Layer], width: int, board: Board) -> Design:
    """The fastest design that the board holds.

    Raises:
        ExportError: even the slowest takes too much; says of what.
    """
    paces = sorted({layer.pixels * factor for layer in layers for factor in layer.reuse_factors()})
    low, high = 0, len(paces) - 1
    slowest = _paced(layers, paces[-1], width)
    if over := slowest.resources.over(board.limits):
        raise ExportError(
            f"the model does not fit on {board.name}, even with every multiplier used as often as can be: it takes "
            f"{', '.join(over)}; {USABLE:.0%} can be used",
            f"compress it further, or name a larger board: {', '.join(BOARDS)}",
        )
    while low < high:  # what fits at some pace fits at every slower one
        middle = (low + high) // 2
        if _paced(layers, paces[middle], width).resources.over(board.limits):
            low = middle + 1
        else:
            high = middle
    return _paced(layers, paces[low], width)


def _paced(layers: Sequence[Layer], pace: int, width: int) -> Design:
    """Every layer as economical as the pace allows, or as fast as it can be where that is not enough."""
    reuse = {
        layer.name: max((each for each in layer.reuse_factors() if layer.pixels * each <= pace), default=1)
        for layer in layers
    }
    return Design(
        reuse,
        estimate(layers, reuse, width),
        max((layer.pixels * reuse[layer.name] for layer in layers), default=0),
    )
