"""export: a bundle's chosen model in other forms, each proven against torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.core.bundle import Artefact as Entry
from secateur.core.bundle import Bundle, is_bundle
from secateur.core.errors import ExportError, OutputError
from secateur.core.files import clear_errors
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export import formats
from secateur.export.bundles import export_all, export_bundle
from secateur.export.formats import Options, Request
from secateur.export.parity import Parity
from secateur.verbs.report import FILE, report
from secateur.verbs.sources import AnyBundle, AnyWorkload, compressed_model, open_bundle, workload_of


@dataclass(frozen=True)
class Artefact:
    """A file that was exported, and how exactly it agrees with the model in torch; where it could not be run here,
    `unproven` says why."""

    format: str
    path: Path
    parity: Parity | None
    unproven: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def export(
    bundle: AnyBundle,
    to: str | Iterable[str] = ("onnx",),
    out: str | os.PathLike[str] | None = None,
    *,
    workload: AnyWorkload | None = None,
    options: Options | None = None,
    force: bool = False,
) -> list[Artefact]:
    """Export a bundle's chosen model.

    Args:
        to: formats.
        out: folder for the files; without it they become artefacts of the bundle, older ones being replaced.
        workload: of the bundle, instead of the one that it refers to.
        options: precision and the like; a format takes those that it knows.
        force: replace files in `out`.

    Raises:
        ExportError: an unknown format or option, or a model that a format cannot express.
        MissingExtraError: the packages of a format are not installed.
        ParityError: a file that does not compute the same; it is not kept.
        OutputError: `out` holds a file of that name.
    """
    opened = open_bundle(bundle)
    if to in ("elastic", ("elastic",), ["elastic"]):
        if options not in (None, Options()):
            raise ExportError("elastic files know no options", "leave out --precision and the like")
        return _elastic(opened, out, workload, force)
    wanted = [name.strip() for text in ([to] if isinstance(to, str) else to) for name in text.split(",")]
    requests = [Request(name, options or Options()) for name in dict.fromkeys(wanted)]
    formats.check_requests(requests)
    found = workload_of(opened, workload)
    if out is None:
        return _into_bundle(opened, found, requests)
    inside = next((each for each in (Path(out).resolve(), *Path(out).resolve().parents) if is_bundle(each)), None)
    if inside is not None:
        raise OutputError(
            f"{out} lies in the bundle {inside}", "leave out -o to write into the bundle, or name another folder"
        )
    model = compressed_model(opened, found)
    with Scratch() as temporary:
        done = export_all(model, found, requests, Path(temporary))
        _move([path for _, each in done for path in (each.written.path, *each.written.beside)], Path(out), force)
    return [
        Artefact(request.format, Path(out) / each.written.path.name, each.parity, each.unproven, each.written.details)
        for request, each in done
    ]


def _elastic(
    bundle: Bundle, out: str | os.PathLike[str] | None, workload: AnyWorkload | None, force: bool
) -> list[Artefact]:
    """The files of an elastic bundle that switch widths at run time."""
    from secateur.core.elastic.files import read_table
    from secateur.verbs.slim import export_elastic

    read_table(bundle)
    if out is None:
        raise ExportError("elastic files are written into a folder of their own", "name it with -o")
    path, parity = export_elastic(bundle, out, workload=workload, force=force)
    return [Artefact("elastic", path / "index.json", parity)]


def _into_bundle(bundle: Bundle, workload: Workload, requests: list[Request]) -> list[Artefact]:
    bundle = export_bundle(bundle, compressed_model(bundle, workload), workload, requests)
    if FILE in bundle.manifest.files:
        report(bundle, workload=workload)
    names = {request.format for request in requests}
    return [
        Artefact(each.format, bundle.file(each.path), parity_of(each), each.unproven, each.details)
        for each in bundle.manifest.artefacts
        if each.format in names
    ]


def parity_of(entry: Entry) -> Parity | None:
    """The proof that a manifest holds of an artefact."""
    if entry.max_abs is None or entry.mean_abs is None:
        return None
    return Parity(entry.max_abs, entry.mean_abs, entry.metrics, entry.samples)


def _move(files: Sequence[Path], destination: Path, force: bool) -> None:
    """All of them, or none where one is in the way."""
    with clear_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        for file in files:
            if (destination / file.name).is_dir():
                raise OutputError(f"{destination / file.name} is a folder", "choose another folder with -o")
            if (destination / file.name).exists() and not force:
                raise OutputError(
                    f"{destination / file.name} exists", "choose another folder with -o, or replace it with --force"
                )
        for file in files:
            shutil.move(file, destination / file.name)
