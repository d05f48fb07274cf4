"""`secateur sweep`: many runs over seeds, tolerances and criteria, shared among any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.options import Budgets, More, WorkloadName
from secateur.cli.verb import Answer, verb

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.verbs.sweep import Sweep


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    verb(app)(sweep)


def sweep(
    workload: WorkloadName,
    *,
    study: Annotated[str, typer.Option("--study", metavar="URL", help="sqlite:///s.db, postgresql://host/sweeps, ...")],
    budget: Budgets,
    drop: Annotated[
        list[str],
        typer.Option(
            "--drop",
            metavar="DROP",
            help='A tolerance: "1%" or "1%,depth=3%"; give it again for another. [default: 1%]',
            default_factory=lambda: ["1%"],
            show_default=False,
        ),
    ],
    more: More,
    seeds: Annotated[str, typer.Option("--seeds", metavar="NUMBERS", help="Between commas.")] = "0,1,2",
    saliency: Annotated[str, typer.Option("--saliency", metavar="NAMES", help="Criteria, between commas.")] = "l1",
    epochs: Annotated[int | None, typer.Option("--epochs", help="Of each run.", show_default=False)] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Of each run.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the bundles.")] = Path("runs/sweep"),
    heartbeat: Annotated[
        int, typer.Option("--heartbeat", min=1, help="Seconds; a worker that misses four is taken for dead.")
    ] = 30,
) -> Answer:
    """Prune once for every seed, tolerance and criterion.

    Start the same command as often as you like, on any machine that reaches the study: the runs are shared out.
    """
    from secateur.verbs.prune import settings_of
    from secateur.verbs.sweep import sweep as run

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise typer.BadParameter(f'"{seeds}" is no list of whole numbers', param_hint="--seeds") from None
    found = run(
        workload, study, budget or None, seeds=numbers, drops=drop, saliencies=saliency.split(","),
        settings=settings_of(None, epochs=epochs, rounds=rounds, more=more), output=output, heartbeat=heartbeat,
    )  # fmt: skip
    return Answer(found.as_json(), lambda console: show_sweep(console, found), found.error)


def show_sweep(console: Console, found: Sweep) -> None:
    """Means over seeds, then what failed."""
    from secateur.cli.listing import table

    numbers = ("runs", "Δ_MTL", "± sd", "FLOPs left", "params left", "budget met")
    shown = table("criterion", "drop", *numbers, numbers=numbers)
    for row in found.summary():
        spread = "" if row["delta_mtl_sd"] is None else f"{row['delta_mtl_sd']:.2f}"
        shown.add_row(
            row["saliency"], row["drop"], str(row["runs"]), f"{row['delta_mtl']:+.2f} %", spread,
            f"{row['flops_left']:.1%}", f"{row['params_left']:.1%}", f"{row['budget_met']} of {row['runs']}",
        )  # fmt: skip
    console.print(shown)
    for cell, error in found.failed.items():
        console.print(f"{cell.name} failed: {error}", style="red", soft_wrap=True)
    console.print(f"{len(found.runs)} of {len(found.cells)} runs; the study is {found.study}", soft_wrap=True)
