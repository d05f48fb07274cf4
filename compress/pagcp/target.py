"""Target: the limits that one round prunes to, judged on the analytic costs of given widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.compress.dataflow.costs import CostModel, Floats
from secateur.core.budget import ON_TARGET, Limit, figure
from secateur.core.costs import Costs
from secateur.targets.hardware import Hardware


class Target:
    """Limits of a round. Without any (the published schedule), nothing is ever met and savings are FLOPs.

    Attributes:
        on_hardware: whether some limit is on latency or energy.
    """

    def __init__(
        self, limits: Sequence[Limit], before: Costs, costs: CostModel, hardware: Hardware | None = None
    ) -> None:
        """`before`: costs of the original model, to which relative limits refer. `hardware`: predicts latency and
        energy."""
        self._costs, self._before, self._hardware = costs, before, hardware
        self._allowed = {limit.kind: limit.absolute(figure(limit.kind, before, before)[0]) for limit in limits}
        self._figures: dict[tuple[str, bytes], float] = {}
        self.on_hardware = not self._allowed.keys().isdisjoint(ON_TARGET)
        self.limits_latency = "latency" in self._allowed

    def met(self, widths: Floats) -> bool:
        """Whether every limit holds."""
        return bool(self._allowed) and not self._unmet(widths)

    def gap(self, widths: Floats) -> float:
        """How far the costs are above the limits: the largest excess, as a share of the original."""
        return max(
            (self._figure(kind, widths) - allowed) / self._whole(kind) for kind, allowed in self._allowed.items()
        )

    def alike(self) -> float:
        """The largest share of its channels (to 1/256) that every group can keep where all keep the same one, by
        bisection; 0 when even a channel each is too much."""
        full, low, high = self._costs.full, 0.0, 1.0
        while high - low > 1 / 256:
            middle = (low + high) / 2
            fits = self.met(np.maximum(1.0, np.floor(middle * full)))
            low, high = (middle, high) if fits else (low, middle)
        return low

    def saving(self, before: Floats, after: Floats) -> float:
        """What going from some widths to smaller ones saves of the costs that are still above their limit: the sum of
        their shares of the original."""
        kinds = self._unmet(before) or ["flops"]
        return sum((self._figure(kind, before) - self._figure(kind, after)) / self._whole(kind) for kind in kinds)

    def cost(self, smaller: Floats, larger: Floats) -> float:
        """What going to larger widths takes of the costs that are limited: the sum of their shares of the original."""
        return sum(
            (self._figure(kind, larger) - self._figure(kind, smaller)) / self._whole(kind) for kind in self._allowed
        )

    def learn(self, widths: Sequence[Floats]) -> None:
        """Prepare the hardware's model for several widths at once."""
        if self._hardware is not None and self.limits_latency:
            self._hardware.learn(self._costs.operators(each) for each in widths)

    def _unmet(self, widths: Floats) -> list[str]:
        return [kind for kind, allowed in self._allowed.items() if self._figure(kind, widths) > allowed]

    def _whole(self, kind: str) -> float:
        return figure(kind, self._before, self._before)[0]

    def _figure(self, kind: str, widths: Floats) -> float:
        if kind == "flops":
            return self._costs.flops(widths)
        if kind == "params":
            return self._costs.params(widths)
        if kind in ON_TARGET:
            return self._on_hardware(kind, widths)
        return figure(kind, self._costs.costs(widths), self._before)[0]

    def _on_hardware(self, kind: str, widths: Floats) -> float:
        key = kind, widths.tobytes()
        if key not in self._figures:
            assert self._hardware is not None
            self._figures[key] = self._hardware.figure(kind, self._costs.operators(widths))
        return self._figures[key]
