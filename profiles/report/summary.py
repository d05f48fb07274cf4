"""The headline: what was compressed, whether the budget was met, and the table before → after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secateur.core.bundle import Manifest
from secateur.core.costs import Profile
from secateur.profiles.report import accuracy, units
from secateur.profiles.report.content import Report

METHODS = {
    "pagcp": "performance-aware global channel pruning (PAGCP)",
    "slimmable": "slimmable widths",
    "experts": "sparse task-expert extraction",
    "experts,pagcp": "sparse task-expert extraction, then performance-aware global channel pruning (PAGCP)",
}
SOURCES = {
    "measured": "measured",
    "predicted": "predicted",
    "published": "published figure",
    "unavailable": "not available here",
}


@dataclass(frozen=True)
class Row:
    """One line of the table; figures are already words. `note` judges the change, `good` colours it (None: neither),
    `hint` explains the label and `source` says where the figures come from."""

    label: str
    before: str
    after: str
    change: str
    note: str = ""
    good: bool | None = None
    hint: str = ""
    source: str = ""


def prepare(report: Report) -> dict[str, Any]:
    """The data of the section."""
    manifest = report.manifest
    changes = accuracy.changes(manifest)
    return {
        "method": METHODS.get(manifest.method, manifest.method),
        "budget": manifest.budget,
        "met": manifest.budget_met,
        "misses": manifest.misses,
        "beyond": [change.name for change in changes if change.within is False],
        "judged": any(change.within is not None for change in changes),
        "tiles": _tiles(report),
        "scope": scope(manifest),
        "groups": [
            ("Tasks", [_task(change) for change in changes] + [_delta(report)]),
            ("Costs of one sample", _costs(report)),
            ("Latency of one sample", latencies(report)),
        ],
    }


def scope(manifest: Manifest) -> str:
    """What the figures before an extraction are of; nothing for other methods, which keep all tasks."""
    if not manifest.method.startswith("experts"):
        return ""
    tasks = ", ".join(task.name for task in manifest.tasks)
    return f"Before: the whole model, its costs for all its tasks, its latency for {tasks} alone"


def latencies(report: Report) -> list[Row]:
    """One row for each target that gives a latency, with where the figure comes from."""
    return [_latency(profile, report.before(profile)) for profile in report.profiles if profile.latency]


def speedup(profile: Profile, before: Profile | None) -> float | None:
    """How many times faster than the original, where both are known."""
    if profile.speedup_against is not None:
        return profile.speedup_against
    if before and before.latency and profile.latency and profile.latency.median > 0:
        return before.latency.median / profile.latency.median
    return None


def _tiles(report: Report) -> list[tuple[str, str]]:
    """The few figures to remember: (figure, what it is)."""
    manifest = report.manifest
    before, after = manifest.before, manifest.point.costs
    tiles = [
        (units.signed_percent(units.relative(before.flops, after.flops)), "FLOPs"),
        (units.signed_percent(units.relative(before.params, after.params)), "parameters"),
        (units.signed_percent(manifest.point.delta_mtl), "Δ_MTL, mean change of the tasks"),
    ]
    for profile in report.profiles:
        factor = speedup(profile, report.before(profile))
        if factor is not None:
            return [*tiles, (units.times(factor), f"speed on {profile.target}, {SOURCES[profile.source]}")]
    return tiles


def _task(change: accuracy.TaskChange) -> Row:
    arrow = "↑ higher is better" if change.better == "higher" else "↓ lower is better"
    relative = units.signed_percent(units.relative(change.before, change.after))
    good = True if (change.gain or 0) > 0 else False if change.within is False else None
    before, after = units.number(change.before), units.number(change.after)
    return Row(change.name, before, after, relative, _judgement(change), good, arrow)


def _judgement(change: accuracy.TaskChange) -> str:
    if change.gain is None:
        return ""
    if change.unchanged:
        return "unchanged"
    if change.gain > 0:
        return "better"
    return {None: "worse", True: "worse, tolerated", False: "worse, not tolerated"}[change.within]


def _delta(report: Report) -> Row:
    value = units.signed_percent(report.manifest.point.delta_mtl)
    return Row(
        "Δ_MTL", units.UNKNOWN, value, units.UNKNOWN, hint="mean relative change of the tasks, positive is better"
    )


def _costs(report: Report) -> list[Row]:
    before, after = report.manifest.before, report.manifest.point.costs
    kinds: list[tuple[str, str, Callable[[float | None], str], str]] = [
        ("FLOPs", "flops", units.flops, "1 MAC = 2 FLOPs"),
        ("MACs", "macs", units.macs, ""),
        ("Parameters", "params", units.count, ""),
        ("Peak memory", "peak_memory_bytes", units.size, "live activations and all weights"),
        ("File size", "size_bytes", units.size, "weights on disk"),
    ]
    entry = report.manifest.on_target
    if entry is not None:
        origin = f"predicted for {entry.target}: {entry.basis}"
        kinds += [
            ("Latency, predicted", "predicted_ms", units.milliseconds, origin),
            ("Energy, predicted", "predicted_mj", units.millijoules, origin),
        ]
    return [
        _cost(label, getattr(before, key), getattr(after, key), unit, hint)
        for label, key, unit, hint in kinds
        if getattr(after, key) is not None
    ]


def _cost(label: str, before: float, after: float, unit: Callable[[float | None], str], hint: str) -> Row:
    good = None if after == before else after < before
    change = units.signed_percent(units.relative(before, after))
    return Row(label, unit(before), unit(after), change, good=good, hint=hint)


def _latency(profile: Profile, before: Profile | None) -> Row:
    assert profile.latency is not None
    factor = speedup(profile, before)
    source = SOURCES[profile.source]
    if profile.error_pct is not None:
        source += f" ± {units.percent(profile.error_pct)}"
    return Row(
        profile.target,
        units.milliseconds(before.latency.median if before and before.latency else None),
        units.milliseconds(profile.latency.median),
        units.times(factor),
        "" if factor is None else "speed-up",
        None if factor is None else factor > 1,
        profile.backend,
        source,
    )
