"""`secateur inspect`: what of a model can be cut, and what it costs."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli.options import WorkloadOption
from secateur.cli.verb import Answer, verb


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    verb(app)(inspect)


def inspect(
    thing: Annotated[str, typer.Argument(metavar="WORKLOAD|BUNDLE", help="A model as it is, or a compressed one.")],
    workload: WorkloadOption = None,
) -> Answer:
    """Show channel groups, costs and dead branches."""
    from secateur.api import inspect as look
    from secateur.cli.listing import show_inspection

    found = look(thing, workload=workload)
    return Answer(found.as_json(), lambda console: show_inspection(console, found))
