"""Options that several commands share, each described once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")
"""Where bundles go that are given no path."""
WorkloadName = Annotated[
    str, typer.Argument(metavar="WORKLOAD", help="scenes, digits, multifashion, package.module:function, or a bundle.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that compress wrote.")]
WorkloadOption = Annotated[
    str | None,
    typer.Option("--workload", metavar="WORKLOAD", help="The bundle's workload, if not the one that it refers to."),
]
Budgets = Annotated[
    list[str],
    typer.Option(
        "--budget",
        metavar="LIMIT",
        help='"flops<=40%", "params<=2M", "latency<=8ms" or "energy<=3mJ" on the first --target, "memory<=4MiB", '
        '"size<=1MiB"; give it again for another: all must hold.',
        default_factory=list,
        show_default=False,
    ),
]
Drops = Annotated[
    list[str],
    typer.Option(
        "--drop",
        metavar="DROP",
        help='Relative loss of a metric that is allowed: "1%", or "depth=3%" for one task. [default: 1%]',
        default_factory=list,
        show_default=False,
    ),
]
Targets = Annotated[
    list[str],
    typer.Option("--target", metavar="TARGET", help='One of `secateur targets`, a YAML file, or "all".'),
]
Front = Annotated[
    str | None,
    typer.Option(
        "--front",
        metavar="POINTS",
        help='Leave a point at each of these on the way: "80%,60%,40%" of what the budget limits, or of the FLOPs.',
        show_default=False,
    ),
]
More = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting of pagcp (saliency=fisher, fixed=stem.*, weighting=dwa, patience=3, ...) "
        "or slimmable (per_group=true, private_norms=true, order=taylor, round_to=16, ...).",
        default_factory=list,
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]
OnDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="That decisions and training run on: cpu, cuda, cuda:1. [default: where the workload's model is]",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at the output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run that was stopped here.")]


def file_name(name: str) -> str:
    """A workload's name as that of a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "workload"
