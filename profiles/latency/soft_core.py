"""A systolic soft core on an FPGA, as AMD's DPU: pixels x input channels x output channels multiply in each cycle.

    SoftCore("B4096", clock_hz=281e6).predict(read_onnx("model.onnx")).ms

    ms = start + cycles / (clock use) + depthwise cycles * slowdown / clock + bytes / bandwidth + operators * each

The parallelism of each size is the published one (AMD, DPUCZDX8G product guide PG338, table of convolution
architectures); a channel count that does not fill it costs the cycles of one that does. `use` is the share of the peak
that is reached, below 1; bandwidth is below the board's. They are fitted to the published whole-network figures by
`python -m secateur.profiles.latency.fit_soft_core`, which leaves networks out to state the error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import ceil, exp, prod

from secateur.core.errors import DeviceError
from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.operators import FAMILIAR, Operator

CORES = {
    "B512": (4, 8, 8), "B800": (4, 10, 10), "B1024": (8, 8, 8), "B1152": (4, 12, 12), "B1600": (8, 10, 10),
    "B2304": (8, 12, 12), "B3136": (8, 14, 14), "B4096": (8, 16, 16),
}  # fmt: skip
"""Name → (pixels, input channels, output channels) at a time. The names count two operations per MAC."""
_MOVES = ("conv", "deconv", "linear", "matmul", "pool", "elementwise")
"""Kinds that read from and write to external memory; others are fused or only rename."""

FOREIGN_WIDTH, FOREIGN_PCT = 1.15, 50.0
"""Half the interval (in logarithms) and the error of models with operators that such a core does not have (attention,
routing): its host computes them, which nothing here models."""


@dataclass(frozen=True)
class Parameters:
    """Fitted constants: milliseconds, shares, and bytes per second."""

    use: float
    depthwise_slowdown: float
    bandwidth: float
    start_ms: dict[str, float]
    operator_ms: float
    error_pct: float
    width: float
    """Half the width of the 90 % interval, in logarithms."""


@dataclass(frozen=True)
class SoftCore:
    """One size of core at a clock. `board` tells whose time to start a run is taken; bandwidth in bytes per second."""

    core: str
    clock_hz: float
    board: str = ""
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.core not in CORES:
            raise DeviceError(f'no soft core "{self.core}"', f"the sizes are: {', '.join(CORES)}")

    @property
    def peak_macs(self) -> float:
        """MACs per second that no layer exceeds."""
        return prod(CORES[self.core]) * self.clock_hz

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        """Latency for one sample with 8-bit weights and activations."""
        known, parts = parameters(), [self._parts(operator) for operator in operators]
        compute, depthwise, memory, each = (sum(part[index] for part in parts) for index in range(4))
        start, ms = self.whole(0.0), self.whole(compute + depthwise + memory + each)
        familiar = self.core == "B4096" and self.board in known.start_ms
        width, error = (each * (1.0 if familiar else 1.5) for each in (known.width, known.error_pct))
        if any(operator.kind not in FAMILIAR for operator in operators):
            width, error = max(width, FOREIGN_WIDTH), max(error, FOREIGN_PCT)
        shares = {"start": start, "compute": compute, "depthwise": depthwise, "memory": memory, "operators": each}
        return Estimate(
            ms, ms * exp(-width), ms * exp(width), error,
            {name: value / ms for name, value in shares.items()},
        )  # fmt: skip

    def layers(self, operators: Sequence[Operator]) -> list[float]:
        """Milliseconds of each operator, without the time to start a run."""
        return [sum(self._parts(operator)) for operator in operators]

    def parts(self, operators: Sequence[Operator]) -> list[float]:
        """What `whole` takes the sum of."""
        return self.layers(operators)

    def whole(self, sums: float) -> float:
        """Milliseconds of a model whose layers take so many together: with the time to start a run."""
        known = parameters()
        return known.start_ms.get(self.board, max(known.start_ms.values())) + sums

    def _parts(self, operator: Operator) -> tuple[float, float, float, float]:
        known = parameters()
        dense, depthwise = cycles(operator, self.core)
        bandwidth = min(known.bandwidth, self.bandwidth or known.bandwidth)
        return (
            1e3 * dense / self.clock_hz / known.use,
            1e3 * depthwise / self.clock_hz * known.depthwise_slowdown,
            1e3 * moved_bytes(operator) / bandwidth,
            known.operator_ms if operator.kind in ("conv", "pool", "elementwise") else 0.0,
        )


def cycles(operator: Operator, core: str) -> tuple[int, int]:
    """(dense, depthwise) cycles of an operator on a core that is always busy."""
    pixels, ins, outs = CORES[core]
    channels_in, channels_out = operator.channels
    if operator.depthwise:
        return 0, ceil(operator.pixels / pixels) * ceil(channels_out / outs) * operator.taps
    if operator.kind in ("conv", "deconv"):
        groups = operator.groups
        steps = ceil(channels_in / groups / ins) * ceil(max(channels_out // groups, 1) / outs)
        places = prod(operator.inputs[0][1:]) if operator.kind == "deconv" else operator.pixels
        return groups * ceil(places / pixels) * steps * operator.taps, 0
    return ceil(operator.macs / (ins * outs)), 0


def moved_bytes(operator: Operator) -> int:
    """Bytes to and from external memory, one per weight and activation."""
    activations = operator.elements_in + operator.elements_out if operator.kind in _MOVES else 0
    return operator.weights + activations


@cache
def parameters() -> Parameters:
    """The constants that ship."""
    path = resources.files("secateur.profiles.latency") / "data" / "soft_core.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    return Parameters(**{name: document[name] for name in Parameters.__dataclass_fields__})
