"""Hardware in the loop: what a target's model says of any widths, the channel counts it is fast at, and the check of
an exported model on the target, by which limits are corrected.

    prune(workload, Budget.parse("latency<=5ms"), loop=Loop(hardware_of(device, ("latency",)), check))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from secateur.compress.dataflow.costs import CostModel
from secateur.compress.journal import Journal
from secateur.core.budget import Budget, Limit, Pairs, figure
from secateur.core.bundle import OnTarget
from secateur.core.costs import Costs
from secateur.core.progress import say
from secateur.profiles.graph import Graph
from secateur.profiles.latency.traced import operators_of, read_graph
from secateur.targets.hardware import Hardware

JUMP = 2.5
"""A count is one that a device is fast at when the next larger one costs so many times what a channel costs on
average."""
MOST_COUNTS = 128
"""Counts of a group that are looked at."""
MARGIN = 0.02
"""Measured medians are known to about this; a corrected limit is below the user's by as much."""


@dataclass(frozen=True)
class Checked:
    """Figures of an exported model on the target, kind → (compressed, original)."""

    figures: Pairs
    source: Literal["measured", "predicted"]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Checked:
        return cls({kind: (after, before) for kind, (after, before) in document["figures"].items()}, document["source"])


Check = Callable[[nn.Module], Checked | None]
"""Exports a compressed model and says what it takes on the target, in turns with the original; None where it cannot be
exported."""


@dataclass(frozen=True)
class Loop:
    """A target: its model, and how to check on it; without `check` the predictions are what a budget is judged by."""

    hardware: Hardware
    check: Check | None = None

    def priced(self, costs: Costs, graphs: Sequence[Graph]) -> Costs:
        """A model's costs with what is predicted of it."""
        operators = operators_of(step for graph in graphs for step in read_graph(graph))
        figures = {kind: self.hardware.figure(kind, operators) for kind in self.hardware.kinds}
        return replace(costs, predicted_ms=figures.get("latency"), predicted_mj=figures.get("energy"))


class Judge:
    """What the limits on a target were judged by within one run: the last check, and the corrections that it led to.

    Without a loop it has nothing to say.
    """

    def __init__(self, loop: Loop | None, before: Costs, journal: Journal) -> None:
        self._loop, self._before, self._journal = loop, before, journal
        self._scales: dict[str, float] = {}
        self._checked: Checked | None = None

    def corrected(self, key: str, model: nn.Module, costs: Costs, limits: Sequence[Limit]) -> list[Limit] | None:
        """The limits to go on to, where a cut model does not reach on the target what was predicted; latency does not
        depend on weights, so there is no need to fine-tune first."""
        checked = self.check(key, model)
        if checked is None:
            return None
        asked = Budget(tuple(limits))
        self._scales = corrections(asked, costs, self._before, checked)
        for kind, scale in self._scales.items():
            say(f"{kind} is {scale:.2f} times what was predicted: pruning on")
        return corrected(asked, self._scales, checked.source) if self._scales else None

    def check(self, key: str, model: nn.Module) -> Checked | None:
        """What the exported model takes on the target."""
        if self._loop is not None and (check_model := self._loop.check) is not None:
            self._checked = self._journal.step(
                key, lambda: check_model(model), lambda found: found and found.as_json(),
                lambda found: found and Checked.from_json(found),
            )  # fmt: skip
        return self._checked

    @property
    def figures(self) -> Pairs | None:
        """Those of the last check."""
        return self._checked.figures if self._checked else None

    def on_target(self) -> OnTarget | None:
        """What limits on latency and energy were judged by."""
        if self._loop is None:
            return None
        hardware = self._loop.hardware
        known = {} if self._checked is None else self._checked.as_json()
        return OnTarget(target=hardware.target, basis=hardware.basis, corrections=self._scales, **known)


def told_apart(loop: Loop | None, before: Costs) -> str | None:
    """What tells one target's predictions from another's: a calibration may have gone on meanwhile."""
    return None if loop is None else f"{loop.hardware.target} {before.predicted_ms} {before.predicted_mj}"


def device_counts(costs: CostModel, hardware: Hardware) -> dict[str, list[int]]:
    """Group → channel counts at which the device gets faster: the last before its time jumps, ascending, without the
    group's own. Larger counts that take no longer are preferred. Groups without a jump are left out."""
    groups = zip(costs.names, costs.full.astype(int).tolist(), strict=True)
    found = {name: _jumps(costs, hardware, name, channels) for name, channels in groups}
    return {name: counts for name, counts in found.items() if counts}


def _jumps(costs: CostModel, hardware: Hardware, name: str, channels: int) -> list[int]:
    counts = list(range(channels, 0, -max(1, channels // MOST_COUNTS)))[::-1]
    models = [costs.operators(costs.widths({name: count})) for count in counts]
    hardware.learn(models)
    ms = np.array([hardware.figure("latency", operators) for operators in models])
    least = np.minimum.accumulate(ms[::-1])[::-1]  # of this many channels or more
    jumps = np.diff(least) > JUMP * max((least[-1] - least[0]) / max(len(counts) - 1, 1), 1e-12)
    return [count for count, jump in zip(counts[:-1], jumps, strict=True) if jump]


def corrections(asked: Budget, costs: Costs, before: Costs, checked: Checked) -> dict[str, float]:
    """Kind → figure on the target over what was predicted, of the limits that were met by prediction and are not on
    the target. Of a relative limit both are shares of the original's."""
    margin = MARGIN if checked.source == "measured" else 0.0
    found = {}
    for limit in asked.on_target.limits:
        predicted, whole = figure(limit.kind, costs, before)
        if limit.kind not in checked.figures or predicted > limit.absolute(whole) * (1 + 1e-9):
            continue
        reached, original = checked.figures[limit.kind]
        if reached > limit.absolute(original) * (1 - margin):
            share = whole / original if limit.relative else 1.0
            found[limit.kind] = reached / predicted * share
    return found


def corrected(asked: Budget, scales: Mapping[str, float], source: str) -> list[Limit]:
    """The limits to prune to by prediction so that they hold on the target."""
    margin = MARGIN if source == "measured" else 0.0
    return [
        replace(limit, value=limit.value * (1 - margin) / scales[limit.kind]) if limit.kind in scales else limit
        for limit in asked.limits
    ]
