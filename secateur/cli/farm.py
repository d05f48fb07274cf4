"""`secateur farm`: many models on many devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.options import Force, Resume, Seed, WorkloadOption
from secateur.cli.verb import Answer, verb

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    verb(app)(farm)


def farm(
    devices: Annotated[Path, typer.Argument(metavar="DEVICES.YAML", help="The devices, see docs/farm.md.")],
    things: Annotated[list[str], typer.Argument(metavar="BUNDLE|WORKLOAD...", help="What to measure.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report, as JSON.")] = Path("farm.json"),
    half: Annotated[bool, typer.Option("--half", help="Store the models in 16 bits.")] = False,
    priority: Annotated[int, typer.Option("--priority", help="Among all who use the devices; higher goes first.")] = 0,
    seed: Seed = 0,
    workload: WorkloadOption = None,
    resume: Resume = False,
    force: Force = False,
) -> Answer:
    """Measure many models on many phones and boards.

    Devices are reached over adb or ssh, work at the same time, and share the models of their key. Each bundle is
    measured in turns with its original.
    """
    from secateur.api import farm as measure
    from secateur.cli.tables import show_benchmark
    from secateur.verbs.farm import nothing

    found = measure(
        things, devices, output, workload=workload, half=half, priority=priority, seed=seed, resume=resume, force=force
    )

    def show(console: Console) -> None:
        for each in found.benchmarks:
            show_benchmark(console, each)

    return Answer(found.as_json(), show, nothing(found))
