"""`secateur export`, `secateur verify` and `secateur report`: what is done with a bundle once it exists."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import BundlePath, Force, WorkloadOption
from secateur.cli.verb import Answer, verb


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    verb(app)(export)
    verb(app)(verify)
    verb(app)(report)


def export(
    bundle: BundlePath,
    to: Annotated[str, typer.Option("--to", metavar="FORMATS", help="Formats, between commas.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the files. [default: into the bundle]")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32 or fp16.")] = "fp32",
    static: Annotated[bool, typer.Option("--static", help="Fix the batch to that of the example input.")] = False,
    opset: Annotated[int | None, typer.Option("--opset", help="Of the ONNX file. [default: 20]")] = None,
    board: Annotated[
        str | None, typer.Option("--board", help="For hls, whose limits to keep. [default: zcu104]")
    ] = None,
    arch: Annotated[str, typer.Option("--arch", help="tvm: of another processor: aarch64, or sm_86 for a GPU.")] = "",
    tune: Annotated[int, typer.Option("--tune", min=0, metavar="TRIALS", help="tvm: measure other schedules.")] = 0,
    capability: Annotated[
        list[int] | None,
        typer.Option("--capability", metavar="CC", help="tensorrt: of the GPU, 86 for 8.6; give it again for another."),
    ] = None,
    workload: WorkloadOption = None,
    force: Force = False,
) -> Answer:
    """Export a bundle's model, proven against torch."""
    from secateur.api import export as write
    from secateur.cli.listing import show_artefacts
    from secateur.export.formats import Options

    options = Options(
        precision=precision,  # type: ignore[arg-type]  # checked by the exporter
        static=static,
        opset=opset,
        board=board,
        arch=arch,
        trials=tune,
        capabilities=tuple(capability or ()),
    )
    found = write(bundle, to, output, workload=workload, options=options, force=force)
    document = [
        {
            "format": each.format,
            "path": str(each.path),
            "parity": each.parity and asdict(each.parity),
            "unproven": each.unproven,
            "details": dict(each.details),
        }
        for each in found
    ]
    return Answer({"artefacts": document}, lambda console: show_artefacts(console, found))


def verify(bundle: BundlePath, workload: WorkloadOption = None) -> Answer:
    """Check a bundle's files and artefacts.

    Every byte against its hash, and every artefact beside the torch model.
    """
    from secateur.api import verify as check
    from secateur.cli.listing import show_verification

    found = check(bundle, workload=workload)
    return Answer(found.as_json(), lambda console: show_verification(console, found))


def report(bundle: BundlePath, workload: WorkloadOption = None) -> Answer:
    """Write a bundle's report.html again."""
    from secateur.api import report as write

    path = write(bundle, workload=workload)
    return Answer({"report": str(path)}, lambda console: console.print(str(path), soft_wrap=True))
