"""Composition: PAGCP on what an extraction left (experts' hidden widths, heads, embedding, and experts once more)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from secateur.compress import pagcp
from secateur.compress.compressed import Compressed
from secateur.compress.pagcp.hardware import Loop
from secateur.compress.runs import drops_too_large
from secateur.core.budget import Budget, Tolerance
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
    loop: Loop | None = None,
) -> Compressed:
    """Prune an extraction's chosen model to a budget. Limits and drops refer to the whole model that was extracted
    from; the points of both follow each other, from large to small."""
    before = extracted.costs_before
    small = extracted.workload.with_model(extracted.model)
    pruned = pagcp.prune(
        small, budget, tolerance, settings, seed=seed, state=state, resume=resume, loop=loop, before=before
    )
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
    figures = pruned.on_target.figures if pruned.on_target else None
    misses = budget.misses(points[-1].costs, before, figures)
    misses += drops_too_large(small.tasks, tolerance, extracted.metrics_before, points[-1].metrics)
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
        seconds=extracted.seconds + pruned.seconds, on_target=pruned.on_target,
    )  # fmt: skip
