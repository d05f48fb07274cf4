"""The front of an elastic model: for each budget and preference the chosen widths, all drawn beforehand, so that
buttons switch between them without a script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.elastic import Choice, Chooser, Table, Wish
from secateur.profiles.control import control
from secateur.profiles.report.content import Report

BUDGETS = 6
PREFERRED = 3.0
"""Weight of a preferred task against 1 of the others."""


@dataclass(frozen=True)
class Panel:
    """One budget with one preference: stages with their widths, tasks with expected and original metrics."""

    budget: int
    preference: int
    met: bool
    flops: float
    latency_ms: float | None
    stages: list[tuple[str, float]]
    tasks: list[tuple[str, str, float, float]]


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the section, or None of a static model."""
    table = report.elastic
    if table is None:
        return None
    target = _target(table)
    chooser = Chooser(table, target=target)
    least = chooser.pick(Wish({"flops": 1.0})).costs["flops"]
    budgets = [float(each) for each in np.geomspace(max(least, 1.0), max(table.original.flops, 1.0), BUDGETS)]
    wishes: list[dict[str, float]] = [{}, *({task: PREFERRED} for task in table.tasks)]
    panels = [
        _panel(table, chooser.pick(Wish({"flops": budget}, wish)), i, j)
        for i, budget in enumerate(budgets)
        for j, wish in enumerate(wishes)
    ]
    figures = control(table, budgets, target=target)
    latency = table.latency.get(target)
    return {
        "budgets": [100 * budget / max(table.original.flops, 1.0) for budget in budgets],
        "preferences": ["all alike", *table.tasks],
        "panels": panels,
        "flops": table.original.flops,
        "configurations": table.configurations,
        "rows": len(table.rows),
        "evaluations": table.notes.get("evaluations"),
        "control": figures,
        "target": target,
        "latency": latency,
        "start": (BUDGETS // 2, 0),
    }


def _target(table: Table) -> str:
    """The target whose latencies are shown: a measured one, if there is any."""
    measured = [name for name, latency in table.latency.items() if latency.source == "measured"]
    return next(iter([*measured, *table.latency]), "cpu")


def _panel(table: Table, choice: Choice, budget: int, preference: int) -> Panel:
    widths = table.widths(choice.configuration)
    return Panel(
        budget,
        preference,
        choice.met,
        choice.costs["flops"],
        choice.costs.get("latency"),
        list(widths.items()),
        [(task, table.better[task], value, table.original.metrics[task]) for task, value in choice.metrics.items()],
    )
