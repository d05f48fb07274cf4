"""PAGCP's decisions in their order, each with its loss curve, and the fine-tuning that followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from secateur.profiles.report import plots, units
from secateur.profiles.report.content import Report

OPEN = 60  # rows shown at once; with more, only the first round stands open


@dataclass(frozen=True)
class Trial:
    """One candidate of a group: share of channels removed, the worst task's loss ratio, and where it is drawn."""

    ratio: float
    loss_ratio: float
    accepted: bool
    x: float
    y: float


@dataclass(frozen=True)
class Sparkline:
    """A loss curve in a box of 100 × 28, and the line that it must stay below."""

    trials: list[Trial]
    limit: float
    words: str


@dataclass(frozen=True)
class Decision:
    """One group's decision; `loss_ratio` is the worst task's, at the largest share that was accepted."""

    position: int
    group: str
    channels: int
    before: int
    kept: int
    tau: float | None
    loss_ratio: float | None
    pruned: bool
    flops: float | None
    spark: Sparkline | None


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the decisions, or None without any."""
    entries = report.history.get("decisions") or []
    if not entries:
        return None
    rounds = [
        {
            "number": number + 1,
            "decisions": [_decision(position, entry) for position, entry in enumerate(group, start=1)],
        }
        for number, group in groupby(entries, key=lambda entry: entry["round"])
    ]
    return {
        "rounds": rounds,
        "open": len(entries) <= OPEN,
        "order": report.history.get("order"),
        "scale": report.history.get("lambda"),
        "spared": [group for group in report.history.get("groups") or [] if not group.get("prunable", True)],
    }


def prepare_tuning(report: Report) -> dict[str, Any] | None:
    """The data of the fine-tuning curves, or None without any: the total loss, then each task's."""
    epochs = report.history.get("fine_tuning") or []
    if not epochs:
        return None
    curves = [_curve("All tasks: total loss", epochs, [entry["loss"] for entry in epochs])]
    for task in report.tasks:
        losses = [entry["tasks"][task.name] for entry in epochs if task.name in entry.get("tasks", {})]
        curves += [_curve(task.name, epochs, losses)] if len(losses) == len(epochs) else []
    return {"plots": curves, "epochs": len(epochs)}


def sparkline(curve: Sequence[Mapping[str, Any]], bound: float) -> Sparkline | None:
    """The loss curve of one decision, sorted by the share removed (a bisection tries them out of order), and the ratio
    that it must stay below."""
    tried = sorted((entry for entry in curve if _finite(entry.get("loss_ratio"))), key=lambda entry: entry["ratio"])
    worst: list[float] = [max(entry["loss_ratio"].values()) for entry in tried]
    if not worst:
        return None
    low, high = min(1.0, *worst), max(bound, min(max(worst), bound + 2 * max(bound - 1, 0.1)))

    def height(value: float) -> float:
        return round(26 - 24 * (min(value, high) - low) / ((high - low) or 1.0), 1)

    trials = [
        Trial(entry["ratio"], value, bool(entry["accepted"]), round(2 + 96 * entry["ratio"], 1), height(value))
        for entry, value in zip(tried, worst, strict=True)
    ]
    return Sparkline(trials, height(bound), "; ".join(map(_words, trials)))


def _finite(ratios: Mapping[str, float | None] | None) -> bool:
    """Whether a candidate's losses can be drawn: one that is not finite is written as None."""
    return bool(ratios) and all(value is not None for value in (ratios or {}).values())


def _words(trial: Trial) -> str:
    verdict = "accepted" if trial.accepted else "refused"
    return f"{units.percent(100 * trial.ratio)} removed: loss × {units.number(trial.loss_ratio)}, {verdict}"


def _decision(position: int, entry: Mapping[str, Any]) -> Decision:
    spark = sparkline(entry.get("curve", ()), entry.get("limit", 1 + (entry.get("tau") or 0.0)))
    accepted = [trial for trial in spark.trials if trial.accepted] if spark else []
    return Decision(
        position=position,
        group=entry["group"],
        channels=entry["channels"],
        before=entry.get("kept_before", entry["channels"]),
        kept=entry["kept"],
        tau=entry.get("tau"),
        loss_ratio=accepted[-1].loss_ratio if accepted else None,
        pruned=entry["pruned"],
        flops=entry.get("flops_after"),
        spark=spark,
    )


def _curve(title: str, epochs: Sequence[Mapping[str, Any]], values: list[float]) -> dict[str, str]:
    starts = [step for step in range(1, len(epochs)) if epochs[step]["round"] != epochs[step - 1]["round"]]
    alt = f"{title} over {len(values)} epochs: from {units.number(values[0])} to {units.number(values[-1])}"
    svg = plots.curve(values, starts, alt=alt)
    return {"title": title, "hint": f"{units.number(values[0])} → {units.number(values[-1])}", "svg": svg}
