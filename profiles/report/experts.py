"""Experts: which task uses which, how much tasks share, what was kept at each point, and how often it is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.profiles.report.content import Report


@dataclass(frozen=True)
class Cell:
    """One expert under one task: its share of the task's choices, and whether the result keeps it."""

    expert: int
    share: float
    kept: bool


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the heat map and of the tables, or None for a model without experts."""
    found = report.history.get("experts")
    if not found:
        return None
    kept = found["points"][report.manifest.chosen]["kept"]
    return {
        "layers": [_layer(layer, found, kept.get(layer["path"], [])) for layer in found["layers"]],
        "tasks": found["tasks"],
        "exact": found["exact"],
        "points": [_point(point, found) for point in found["points"]],
        "dense": found["dense_equivalent"]["flops"],
        "after": report.manifest.point.costs.flops,
    }


def _layer(layer: Mapping[str, Any], found: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    path, usage = layer["path"], found["usage"]
    rows = {task: _cells(table[path]["tokens"], set(kept)) for task, table in usage.items() if path in table}
    overlap = found["overlap"].get(path, {})
    pairs = [
        (one, other, value)
        for position, (one, others) in enumerate(overlap.items())
        for other, value in list(others.items())[position + 1 :]
    ]
    return {**layer, "rows": rows, "kept": len(kept), "overlap": pairs}


def _cells(tokens: list[float], kept: set[int]) -> list[Cell]:
    total = sum(tokens) or 1.0
    return [Cell(number, count / total, number in kept) for number, count in enumerate(tokens)]


def _point(point: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    rates = [rate for task in point["miss_rate"].values() for rate in task.values()]
    experts = sum(layer["experts"] for layer in found["layers"])
    return {
        "name": point["point"],
        "kept": sum(map(len, point["kept"].values())),
        "experts": experts,
        "top_k": sorted(set(point["top_k"].values())),
        "miss_rate": sum(rates) / len(rates) if rates else 0.0,
    }
