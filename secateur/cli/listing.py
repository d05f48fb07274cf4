"""What the other commands show to people: lists of targets, groups, artefacts and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from secateur.targets.registry import TargetStatus
    from secateur.verbs.calibrate import CalibrationReport
    from secateur.verbs.export import Artefact
    from secateur.verbs.inspect import Inspection
    from secateur.verbs.verify import Verification


_BESIDE_NAMES = 45
"""Columns that figures and reasons need beside the names of groups."""


def table(*columns: str, numbers: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """An empty table; columns in `numbers` are aligned to the right; those in `whole` are not folded."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in numbers
        made.add_column(column, justify="right" if right else "left", no_wrap=right or column in whole, overflow="fold")
    return made


def show_targets(console: Console, found: Sequence[TargetStatus]) -> None:
    """The targets of each status; why, and how to get more, said once for all that share it."""
    alike: dict[tuple[str, str], list[str]] = {}
    for each in sorted(found, key=lambda target: target.status):  # measured, predicted, unavailable
        why = "; ".join(filter(None, (each.reason, each.how)))
        alike.setdefault((each.status, why), []).append(each.name)
    for (status, why), names in alike.items():
        console.print(Text(status, "bold").append(f" {why}" if why else "", "not bold dim"))
        console.print(Padding("  ".join(names), (0, 0, 0, 2)))


def show_inspection(console: Console, found: Inspection) -> None:
    """Groups, tasks, dead branches and totals."""
    from secateur.profiles.report import units

    show_groups(console, found.groups)
    tasks = table("task", "FLOPs of its own", "FLOPs shared", numbers=("FLOPs of its own", "FLOPs shared"))
    for name, task in found.tasks.items():
        tasks.add_row(name, units.flops(task.flops_exclusive), units.flops(task.flops_shared))
    console.print()
    console.print(tasks)
    console.print()
    costs = found.costs
    console.print(
        f"{found.name}: {units.flops(costs.flops)} ({units.macs(costs.macs)}), {units.count(costs.params)} parameters, "
        f"peak memory {units.size(costs.peak_memory_bytes)}, size {units.size(costs.size_bytes)}, for one sample"
    )
    for layer in found.experts:
        console.print(
            f"{layer['path']}: {layer['experts']} experts of {units.size(layer['expert_bytes'])}, "
            f"{layer['top_k']} for each token"
        )
    if found.bank:
        for each in found.bank["sets"]:
            console.print(f"for {', '.join(each['tasks'])} a device loads {units.size(each['bytes'])}")
        separate = sum(each["bytes"] for each in found.bank["sets"])
        stored = units.size(found.bank["stored_bytes"])
        console.print(f"the bank stores {stored}; models of their own would take {units.size(separate)}")
    if found.dead:
        console.print(f"no task needs: {', '.join(found.dead)}")


def show_groups(console: Console, groups: Sequence[Mapping[str, Any]]) -> None:
    """Names first; last, and folded, where they leave no room for what stands beside them."""
    from secateur.profiles.report import units

    longest = max((len(group["name"]) for group in groups), default=0)
    numbers, name_last = ("channels", "FLOPs share"), longest + _BESIDE_NAMES > console.width
    columns = (*numbers, "channel group") if name_last else ("channel group", *numbers, "")
    shown = table(*columns, numbers=numbers, whole=() if name_last else ("channel group",))
    for group in groups:
        share = units.UNKNOWN if group["flops_share"] is None else units.percent(100 * group["flops_share"])
        figures = str(group["channels"]), share
        why = "" if group["prunable"] else f"not prunable: {group['why_not']}"
        row = (*figures, "\n".join(filter(None, (group["name"], why)))) if name_last else (group["name"], *figures, why)
        shown.add_row(*row, style="" if group["prunable"] else "dim")
    console.print(shown)


def show_artefacts(console: Console, found: Sequence[Artefact]) -> None:
    """Path of each file, and how exactly it agrees with torch."""
    from secateur.profiles.report import units

    for each in found:
        console.print(str(each.path), soft_wrap=True)
        if each.parity is None:
            console.print(f"  {each.format}: not run here: {each.unproven}", style="dim", soft_wrap=True)
            continue
        console.print(
            f"  {each.format}: largest difference from torch {units.scientific(each.parity.max_abs)} "
            f"over {each.parity.samples} samples",
            style="dim",
        )


def show_verification(console: Console, found: Verification) -> None:
    """What was checked."""
    from secateur.profiles.report import units

    console.print(f"{found.bundle.path}: all {found.files} files are as they were written", soft_wrap=True)
    for path, parity in found.parity.items():
        console.print(
            f"{path} computes what torch computes: largest difference {units.scientific(parity.max_abs)} "
            f"over {parity.samples} samples",
            soft_wrap=True,
        )
    for path, reason in found.not_run.items():
        console.print(f"{path} was not run: {reason}", soft_wrap=True)
    if found.skipped:
        console.print(f"artefacts were not run: {found.skipped}", soft_wrap=True)


def show_calibration(console: Console, found: CalibrationReport) -> None:
    """How much was measured, how well it predicts, and where it lies."""
    error = "" if found.error_pct is None else f"; others are predicted with a median error of {found.error_pct:g} %"
    console.print(f"{found.runtime}: {found.operators} operators and {found.networks} networks measured{error}")
    console.print(found.path, style="dim", soft_wrap=True)
