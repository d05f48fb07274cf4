"""`secateur`: the command line.

Commands are in one module per group of verbs; `run.py` prints answers and errors.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import secateur
from secateur.cli import bundles, compress, farm, looking, measuring, sweeping
from secateur.cli.run import leave, run

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Start with: secateur demo. Exit codes: 0 done, 1 unexpected, 2 wrong input, 3 budget not met, "
    "4 a target or an extra is missing.",
)
for group in (compress, measuring, farm, looking, bundles, sweeping):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"secateur {secateur.__version__}")
        raise typer.Exit


@app.callback()
def _secateur(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compress trained multi-task PyTorch models for named hardware, and prove the result on it."""


def main() -> None:
    """The console script."""
    leave(run(app, sys.argv[1:]))
