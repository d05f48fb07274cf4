"""Each task's change against the drop that was allowed: in words, and as a bullet chart on one common scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secateur.core.budget import Tolerance
from secateur.core.bundle import Manifest, TaskEntry
from secateur.profiles.report import units
from secateur.profiles.report.content import Report


@dataclass(frozen=True)
class TaskChange:
    """`gain` is the signed relative change in percent, positive is better (Maninis et al., CVPR 2019, eq. 4);
    `allowed` the tolerated drop in percent, None where none is known."""

    name: str
    better: str
    before: float | None
    after: float | None
    gain: float | None
    allowed: float | None

    @property
    def within(self) -> bool | None:
        """Whether the task stayed within its tolerance; None where that cannot be said."""
        if self.gain is None or self.allowed is None:
            return None
        return self.gain >= -self.allowed - 1e-9

    @property
    def unchanged(self) -> bool:
        """Whether the gain rounds to nothing where it is shown."""
        return self.gain is not None and round(self.gain, 2) == 0

    @property
    def words(self) -> str:
        if self.gain is None:
            return "not measured"
        verb = "better by" if self.gain > 0 else "worse by"
        change = "unchanged" if self.unchanged else f"{verb} {units.percent(self.gain)}"
        if self.allowed is None:
            return change
        verdict = "within" if self.within else "beyond"
        return f"{change}; {verdict} the allowed drop of {units.percent(self.allowed)}"


def changes(manifest: Manifest) -> list[TaskChange]:
    """The change of every task from the original to the chosen point."""
    return [_change(manifest, task, manifest.drops) for task in manifest.tasks]


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the section, or None without measured tasks."""
    rows = [row for row in changes(report.manifest) if row.gain is not None]
    if not rows:
        return None
    low, high = _domain(rows)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return {"rows": [{"task": row, "mark": _mark(row, place)} for row in rows], "zero": place(0)}


def _change(manifest: Manifest, task: TaskEntry, tolerance: Tolerance | None) -> TaskChange:
    before, after = manifest.metrics_before.get(task.name), manifest.point.metrics.get(task.name)
    change = units.relative(before, after)
    gain = change if change is None or task.better == "higher" else -change
    allowed = None if tolerance is None else 100 * tolerance.of(task.name)
    return TaskChange(task.name, task.better, before, after, gain, allowed)


def _domain(rows: list[TaskChange]) -> tuple[float, float]:
    """One scale for all tasks, in percent, with zero inside and some air at both ends."""
    values = [0.0, *(row.gain or 0.0 for row in rows), *(-(row.allowed or 0.0) for row in rows)]
    low, high = min(values), max(values)
    air = 0.08 * ((high - low) or 1.0)
    return low - air, high + air


def _mark(row: TaskChange, place: Callable[[float], float]) -> dict[str, float | None]:
    """Positions along the chart in percent of its width."""
    gain = row.gain or 0.0
    left, right = sorted((place(0), place(gain)))
    allowed = None if row.allowed is None else place(-row.allowed)
    return {"left": left, "width": round(max(right - left, 0.4), 2), "allowed": allowed}
