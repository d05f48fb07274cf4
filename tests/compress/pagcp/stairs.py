"""A device whose times are stairs: convolutions take four channels at a time, everything else costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from secateur.profiles.latency import Estimate, Operator
from secateur.profiles.latency.table import LatencyTable
from secateur.targets.device import get
from secateur.targets.hardware import Hardware

LANES, START = 4, 0.01


class Stairs:
    def layers(self, operators: Sequence[Operator]) -> list[float]:
        return [self._ms(each) for each in operators]

    parts = layers

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        ms = self.whole(sum(self.layers(operators)))
        return Estimate(ms, ms, ms, 0.0, {})

    def whole(self, parts_ms: float) -> float:
        return START + parts_ms

    def _ms(self, operator: Operator) -> float:
        ins, outs = (ceil(each / LANES) for each in operator.channels)
        return 1e-5 * operator.pixels * operator.taps * ins * outs if operator.kind == "conv" else 0.0


def hardware(*kinds: str) -> Hardware:
    """Of a device that has figures of energy too."""
    return Hardware(get("mobile:raspberry-pi-5"), kinds or ("latency",), "stairs", LatencyTable(Stairs()))
