"""Composition: PAGCP on what an extraction left (experts' hidden widths, heads, embedding, and experts once more)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.compress import pagcp
from secateur.compress.compressed import Compressed, CompressedPoint
from secateur.compress.experts.cutting import expert_map, record
from secateur.compress.experts.layers import find
from secateur.compress.experts.usage import miss_rates
from secateur.compress.pagcp.front import front_misses, with_front
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

    def later(what: str) -> list[dict[str, Any]]:
        """Lines of the pruning's history, its rounds counted on from those of the extraction."""
        return [{**line, "round": line["round"] + first + 1} for line in pruned.history[what]]

    figures = pruned.on_target.figures if pruned.on_target else None
    misses = budget.misses(points[-1].costs, before, figures)
    misses += front_misses(*with_front(budget, settings or pagcp.Settings()), [each.costs for each in points], before)
    misses += drops_too_large(small.tasks, tolerance, extracted.metrics_before, points[-1].metrics)
    experts = extracted.history["experts"]
    history = {
        **pruned.history,
        "experts": {**experts, "points": experts["points"] + _records(extracted, points)},
        "groups": extracted.history["groups"] + pruned.history["groups"],
        "sequences": later("sequences"),
        "decisions": extracted.history["decisions"] + later("decisions"),
        "fine_tuning": extracted.history["fine_tuning"] + later("fine_tuning"),
    }
    return replace(
        extracted, method="experts,pagcp", budget=budget, tolerance=tolerance, points=[*extracted.points, *points],
        chosen=len(extracted.points) + pruned.chosen, misses=misses, history=history, oracle=pruned.oracle,
        settings={"experts": extracted.settings, "pagcp": pruned.settings},
        seconds=extracted.seconds + pruned.seconds, on_target=pruned.on_target,
    )  # fmt: skip


def _records(extracted: Compressed, points: Sequence[CompressedPoint]) -> list[dict[str, Any]]:
    """Of each pruned point, which experts are left; the miss rate stays where all are."""
    last, whole = extracted.history["experts"]["points"][-1], copy.deepcopy(extracted.workload.model)
    if (top_k := extracted.settings["top_k"]) is not None:
        expert_map(whole, find(whole), {}, top_k).apply(whole)
    records = [record(f"pruned{number}", point.model, point.channel_map) for number, point in enumerate(points)]
    for one in records:
        same = one["kept"] == last["kept"]
        one["miss_rate"] = last["miss_rate"] if same else miss_rates(whole, one["kept"], extracted.workload)
    return records
