"""The front of the run: what each saved point costs in FLOPs, and what it gives up in each task."""

from __future__ import annotations

from typing import Any

from secateur.core.budget import Budget
from secateur.core.bundle import Manifest
from secateur.core.errors import BudgetError
from secateur.profiles.report import accuracy, plots, units
from secateur.profiles.report.content import Report


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the section, or None with a single point: that is no front."""
    manifest = report.manifest
    if len(manifest.points) < 2 or not manifest.before.flops:
        return None
    plots_ = [_delta_plot(manifest), *_task_plots(manifest)]
    return {"plots": plots_, "points": manifest.points, "chosen": manifest.chosen, "tasks": manifest.tasks}


def _delta_plot(manifest: Manifest) -> dict[str, str]:
    values = [point.delta_mtl for point in manifest.points]
    alt = f"Δ_MTL against FLOPs of {len(values)} points: {_in_words(manifest, values, 'percent')}"
    svg = _front(manifest, values, 0.0, None, alt)
    return {"title": "All tasks: Δ_MTL in percent", "hint": "higher is better", "svg": svg}


def _task_plots(manifest: Manifest) -> list[dict[str, str]]:
    """A plot for each task that every point has a metric of."""
    return [
        _task_plot(manifest, change)
        for change in accuracy.changes(manifest)
        if all(change.name in point.metrics for point in manifest.points) and change.before is not None
    ]


def _task_plot(manifest: Manifest, change: accuracy.TaskChange) -> dict[str, str]:
    values = [point.metrics[change.name] for point in manifest.points]
    sign = -1 if change.better == "higher" else 1
    before = change.before or 0.0
    floor = None if change.allowed is None else before + sign * abs(before) * change.allowed / 100
    alt = f"{change.name} against FLOPs of {len(values)} points: {_in_words(manifest, values, '')}"
    svg = _front(manifest, values, before, floor, alt)
    return {"title": change.name, "hint": f"{change.better} is better", "svg": svg}


def _front(manifest: Manifest, values: list[float], original: float, floor: float | None, alt: str) -> str:
    marks = [plots.Mark(_share(manifest, index), value) for index, value in enumerate(values)]
    return plots.front(
        marks,
        manifest.chosen,
        plots.Mark(100.0, original),
        limit=_flops_limit(manifest),
        floor=floor,
        alt=alt,
    )


def _in_words(manifest: Manifest, values: list[float], unit: str) -> str:
    return "; ".join(
        f"{_share(manifest, index):.0f} % of the FLOPs: {units.number(value, 3)} {unit}".rstrip()
        + (" (chosen)" if index == manifest.chosen else "")
        for index, value in enumerate(values)
    )


def _share(manifest: Manifest, index: int) -> float:
    """FLOPs of a point in percent of the original's."""
    return 100 * manifest.points[index].costs.flops / manifest.before.flops


def _flops_limit(manifest: Manifest) -> float | None:
    """The FLOPs asked for, in percent of the original's; None when there is no such budget."""
    try:
        limit = Budget.parse(manifest.budget).of("flops")
    except BudgetError:
        return None
    return None if limit is None else 100 * limit.absolute(manifest.before.flops) / manifest.before.flops
