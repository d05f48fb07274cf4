"""What the commands do with elastic models: make one, choose its widths, write its files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from secateur.cli.options import RUNS, file_name
from secateur.cli.verb import Answer

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.core.bundle import Bundle
    from secateur.verbs.select_elastic import ElasticSelection

EVERY_BUDGET = "an elastic model serves every budget: compress without it, then `secateur select`"


def refuse_options(options: Mapping[str, object], why: str = EVERY_BUDGET) -> None:
    """Refuse what a method has no use for."""
    for name, value in options.items():
        if value or (value == 0 and value is not False):
            raise typer.BadParameter(why, param_hint=name)


def slim_work(
    workload: str,
    command: str,
    *,
    output: Path | None,
    widths: str | None,
    layout: str,
    epochs: int | None,
    more: Sequence[str],
    targets: Sequence[str],
    seed: int,
    device: str | None,
    resume: bool,
    force: bool,
) -> Bundle:
    """Make a workload's model, or what a bundle holds of one, elastic, into a bundle."""
    from secateur.compress.slimmable import Settings
    from secateur.verbs.changes import changed
    from secateur.verbs.slim import slim_to_bundle
    from secateur.verbs.sources import named

    found, name = named(workload)
    settings = changed(Settings(), more, widths=_shares(widths), epochs=epochs)
    return slim_to_bundle(
        found, output or RUNS / f"{file_name(name)}-slimmable", settings=settings, targets=targets, layout=layout,
        seed=seed, device=device, resume=resume, force=force, command=command,
    )  # fmt: skip


def _shares(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f'cannot read "{text}"; for example: 0.25,0.5,0.75,1', param_hint="--widths") from None


def select_widths(
    bundle: Bundle,
    budget: Sequence[str],
    target: str,
    prefer: Mapping[str, float],
    *,
    tasks: str | None,
    drop: Sequence[str],
    objective: str,
    workload: str | None,
    output: Path | None,
    epochs: int,
    force: bool,
    command: str,
) -> Answer:
    """Choose widths of an elastic bundle; with an output, write them as a bundle of its own."""
    from secateur.core.budget import Tolerance
    from secateur.verbs.select_elastic import select_elastic, write_selection

    floors = Tolerance.parse(list(drop), math.inf) if drop else None
    running = [task.strip() for task in tasks.split(",") if task.strip()] if tasks is not None else None
    selection = select_elastic(
        bundle, list(budget), target, prefer, tasks=running, floors=floors, objective=objective,  # type: ignore[arg-type]
    )  # fmt: skip
    if output is not None:
        selection = write_selection(selection, output, workload, epochs=epochs, force=force, command=command)
    written = output is not None
    return Answer(selection.as_json(), lambda console: _show(console, selection, written), selection.error)


def show_elastic(console: Console, bundle: Bundle) -> None:
    """How many configurations an elastic bundle has, and how to choose one."""
    from secateur.core.elastic import Chooser, Wish
    from secateur.core.elastic.files import read_table
    from secateur.profiles.report import units

    found = read_table(bundle)
    least = Chooser(found).pick(Wish({"flops": 1.0})).costs["flops"]
    reach = f"{units.flops(least)} to {units.flops(found.costs['flops'].of(*found.full))}"
    console.print(f"{units.number(found.configurations, 1)} configurations, {reach}; the table is of full width")
    console.print(f'choose one with: secateur select {bundle.path} --budget "flops<=50%"', soft_wrap=True)


def _show(console: Console, selection: ElasticSelection, written: bool) -> None:
    """The widths, and what they are expected to cost and yield; or, once they are a bundle, what they do."""
    from secateur.cli.listing import table

    choice, widths = selection.choice, selection.widths
    shown = table("stage", "width", "channels", numbers=("width",))
    at = dict(zip([stage.name for stage in selection.table.stages], choice.configuration, strict=True))
    for stage in selection.table.stages:
        if stage.name in widths:
            kept = [str(counts[at[stage.name]]) for counts in stage.channels.values()]
            shown.add_row(stage.name, f"{widths[stage.name]:g}", _shortened(kept))
    console.print(shown)
    console.print(f"searched in {selection.search_ms:.1f} ms", style="dim")
    if written:
        from secateur.cli.tables import show_bundle
        from secateur.verbs.benchmark import Benchmark

        assert selection.bundle is not None
        show_bundle(console, selection.bundle, Benchmark.of(selection.bundle))
        return
    figures = table("", "expected", "original", numbers=("expected", "original"))
    for name, expected, original in _figures(selection):
        figures.add_row(name, expected, original)
    console.print(figures)
    for line in _sources(selection):
        console.print(line, style="dim")
    console.print("metrics on calibration data; -o FOLDER evaluates the choice on test data and writes it", style="dim")


def _sources(selection: ElasticSelection) -> list[str]:
    """What the figures of the target come from."""
    found, latency = [], selection.table.latency.get(selection.target)
    if latency is not None and latency.source == "measured":
        error = f", sums within {latency.error_pct:.0f} % of whole calls" if latency.error_pct is not None else ""
        found.append(f"latency on {selection.target}, measured on {latency.machine}{error}")
    elif latency is not None:
        error = f", typically {latency.error_pct:.0f} % off" if latency.error_pct is not None else ""
        found.append(f"latency on {selection.target}, predicted ({latency.machine}){error}")
    if selection.target in selection.table.energy:
        found.append(f"energy on {selection.target}, predicted from that of a MAC and of a byte in its file")
    return found


def _shortened(kept: list[str]) -> str:
    return ", ".join(kept if len(kept) <= 8 else [*kept[:7], "…"])


def _figures(selection: ElasticSelection) -> list[tuple[str, str, str]]:
    from secateur.profiles.report import units

    costs, original = selection.choice.costs, selection.table.original
    latency = selection.table.latency.get(selection.target)
    rows: list[tuple[str, str, str]] = [
        ("FLOPs", units.flops(round(costs["flops"])), units.flops(round(original.flops))),
        ("Parameters", units.count(round(costs["params"])), units.count(round(original.params))),
        ("Memory", units.size(round(costs["memory"])), units.size(round(original.memory))),
    ]
    if latency is not None:
        rows.append(("Latency", units.milliseconds(costs["latency"]), units.milliseconds(latency.original_ms)))
    if "energy" in costs:
        rows.append(("Energy", units.millijoules(costs["energy"]), units.millijoules(selection.figures["energy"][1])))
    metrics: Mapping[str, Any] = original.metrics
    for task, value in selection.choice.metrics.items():
        arrow = "↑" if selection.table.better[task] == "higher" else "↓"
        rows.append((f"{task} {arrow}", units.number(value), units.number(metrics[task])))
    return rows
