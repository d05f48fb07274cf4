"""Composition: PAGCP on what an extraction left (experts' hidden widths, heads, embedding, and experts once more)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from secateur.compress import pagcp
from secateur.compress.compressed import Compressed
from secateur.core.budget import Budget, Limit, Tolerance, figure
from secateur.core.costs import Costs
from secateur.core.task import delta_mtl


def then_prune(
    extracted: Compressed,
    budget: Budget,
    tolerance: Tolerance,
    settings: pagcp.Settings | None = None,
    *,
    seed: int = 0,
    state: Path | None = None,
    resume: bool = False,
) -> Compressed:
    """Prune an extraction's chosen model to a budget. Limits and drops refer to the whole model that was extracted
    from; the points of both follow each other, from large to small."""
    before = extracted.costs_before
    absolute = Budget(tuple(_absolute(limit, before) for limit in budget.limits))
    small = extracted.workload.with_model(extracted.model)
    pruned = pagcp.prune(small, absolute, tolerance, settings, seed=seed, state=state, resume=resume)
    first = len(extracted.points) - 1
    points = [
        replace(
            point,
            channel_map=extracted.point.channel_map.then(point.channel_map),
            delta_mtl=delta_mtl(small.tasks, extracted.metrics_before, point.metrics),
        )
        for point in pruned.points
    ]
    later = [{**line, "round": line["round"] + first + 1} for line in pruned.history["decisions"]]
    misses = budget.misses(points[-1].costs, before)
    for task in small.tasks:
        change = task.relative_change(extracted.metrics_before[task.name], points[-1].metrics[task.name])
        allowed = tolerance.of(task.name)
        if -change > allowed + 1e-9:
            misses.append(f"{task.name}: {100 * change:+.2f}% where a drop of {100 * allowed:g}% is allowed")
    history = {
        **pruned.history,
        "experts": extracted.history["experts"],
        "groups": extracted.history["groups"] + pruned.history["groups"],
        "decisions": extracted.history["decisions"] + later,
        "fine_tuning": extracted.history["fine_tuning"]
        + [{**line, "round": line["round"] + first + 1} for line in pruned.history["fine_tuning"]],
    }
    return replace(
        extracted, method="experts,pagcp", budget=budget, tolerance=tolerance, points=[*extracted.points, *points],
        chosen=len(extracted.points) + pruned.chosen, misses=misses, history=history, oracle=pruned.oracle,
        settings={"experts": extracted.settings, "pagcp": pruned.settings},
        seconds=extracted.seconds + pruned.seconds,
    )  # fmt: skip


def _absolute(limit: Limit, before: Costs) -> Limit:
    original, _ = figure(limit.kind, before, before)
    return replace(limit, value=limit.absolute(original), relative=False)
