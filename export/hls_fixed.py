"""Fixed-point numbers for a design: each tensor's integer bits from its range, one width for all from the task metrics.

    widths = Fixed.measure(prepared, batches)
    smallest_width(prepared, widths, workload)       # 11, say

`ap_fixed<W, I>` holds W bits, I of them before the point, sign included; what does not fit below is cut off, what does
not fit above wraps round. Sums inside of a layer are exact, as hls4ml makes them when it chooses their width. `emulate`
computes so in torch, in double precision (exact for the widths used here), which takes a thousandth of the time of
compiling the design; the design itself has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.core.errors import ExportError
from secateur.core.predict import evaluate_with
from secateur.core.task import Workload
from secateur.export.hls_graph import LAYERS_WITH_WEIGHTS, Prepared

NARROWEST, WIDEST = 4, 24
RANGE_BATCHES = 8
METRIC_TOLERANCE = 0.01
"""Relative change of a task's metric that a width may cost."""
OUTPUT_TOLERANCE = 0.25
"""How far an output may be off, in shares of the task's largest one."""


@dataclass(frozen=True)
class Fixed:
    """Integer bits of every tensor of a graph: of each node's result, of each layer's weight and bias."""

    results: dict[str, int]
    weights: dict[str, int]
    biases: dict[str, int]

    @classmethod
    def measure(cls, prepared: Prepared, batches: Iterable[Any]) -> Fixed:
        """From the ranges over batches of inputs; results get one bit to spare, for inputs that reach further."""
        ranges: dict[str, float] = {}
        for inputs in batches:
            _Ranges(prepared.graph, ranges).run(inputs)
        layers = {
            node: module for node in prepared.nodes if isinstance(module := prepared.module(node), LAYERS_WITH_WEIGHTS)
        }
        return cls(
            {name: integer_bits(value) + 1 for name, value in ranges.items()},
            {node.name: integer_bits(_largest(module.weight)) for node, module in layers.items()},
            {node.name: integer_bits(_largest(module.bias)) for node, module in layers.items()},
        )


def integer_bits(largest: float) -> int:
    """The fewest bits before the point, sign included, with which ± `largest` does not wrap; may be zero or less."""
    return math.floor(math.log2(largest)) + 2 if largest > 0 else 1


def quantise(values: Tensor, width: int, integer: int) -> Tensor:
    """As `ap_fixed<width, integer>` holds them: cut off below, wrapped round above."""
    step, span = 2.0 ** (integer - width), 2.0**integer
    cut = torch.floor(values / step) * step
    return torch.remainder(cut + span / 2, span) - span / 2


def emulate(prepared: Prepared, fixed: Fixed, width: int) -> Callable[[Any], dict[str, Tensor]]:
    """The design as a function `inputs -> {task: prediction}`."""

    def predict(inputs: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            values = _FixedPoint(prepared, fixed, width).run(inputs)
        return {task: value.float() for task, value in zip(prepared.outputs, values, strict=True)}

    return predict


def smallest_width(
    prepared: Prepared, fixed: Fixed, workload: Workload, *, tolerance: float = METRIC_TOLERANCE, batches: int = 8
) -> int:
    """The smallest width with which every task keeps its metric on the calibration data.

    Every width above a good one is tried too until two in a row are good, since a metric may be met by luck.

    Raises:
        ExportError: not even the widest does; names the task.
    """
    data = list(islice(workload.calibration, batches))
    wanted = evaluate_with(lambda inputs: _float(prepared, inputs), data, workload.tasks)
    first = data[0][0]
    exact = _float(prepared, first)
    good: list[int] = []
    worst = ""
    for width in range(NARROWEST, WIDEST + 1):
        design = emulate(prepared, fixed, width)
        got = evaluate_with(design, data, workload.tasks)
        off = [task for task in wanted if not abs(got[task] - wanted[task]) <= tolerance * abs(wanted[task])]
        held = design(first)
        if off:
            worst = f'task "{off[0]}" has {got[off[0]]:.4g} instead of {wanted[off[0]]:.4g}'
            good.clear()
        elif any(_largest(held[task] - exact[task]) > OUTPUT_TOLERANCE * _largest(exact[task]) for task in exact):
            good.clear()  # a metric that hardly looks at the outputs
        else:
            good.append(width)
        if len(good) == 2:
            return good[0]
    if good:
        return good[0]
    raise ExportError(
        f"{WIDEST} bits are not enough for this model: {worst}",
        "outputs of very different magnitude need another scale",
    )


def _float(prepared: Prepared, inputs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(prepared.outputs, prepared.graph(inputs), strict=True))


def _largest(values: Tensor | None) -> float:
    return float(values.detach().abs().max()) if values is not None and values.numel() else 0.0


class _Ranges(fx.Interpreter):
    """Notes the largest magnitude of every result."""

    def __init__(self, graph: fx.GraphModule, ranges: dict[str, float]) -> None:
        super().__init__(graph)
        self._ranges = ranges

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self._ranges[n.name] = max(self._ranges.get(n.name, 0.0), _largest(value))
        return value


class _FixedPoint(fx.Interpreter):
    """Runs the graph in double precision, with every stored number as the design stores it."""

    def __init__(self, prepared: Prepared, fixed: Fixed, width: int) -> None:
        super().__init__(prepared.graph)
        self._prepared, self._fixed, self._width = prepared, fixed, width

    def run_node(self, n: fx.Node) -> Any:
        module = self._prepared.module(n)
        if isinstance(module, LAYERS_WITH_WEIGHTS):
            value = self._layer(n, module)
        elif n.op == "placeholder":
            value = super().run_node(n).double()
        elif isinstance(module, nn.BatchNorm2d):
            value = module.double()(*self.fetch_args_kwargs_from_env(n)[0])
            module.float()
        else:
            value = super().run_node(n)
        if n.op == "output":
            return value
        return quantise(value, self._width, self._fixed.results[n.name])

    def _layer(self, node: fx.Node, module: Any) -> Tensor:
        (inputs,) = self.fetch_args_kwargs_from_env(node)[0]
        weight = quantise(module.weight.double(), self._width, self._fixed.weights[node.name])
        bias = None
        if module.bias is not None:
            bias = quantise(module.bias.double(), self._width, self._fixed.biases[node.name])
        if isinstance(module, nn.Linear):
            return nn.functional.linear(inputs, weight, bias)
        return nn.functional.conv2d(inputs, weight, bias, module.stride, module.padding)
