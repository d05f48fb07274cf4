"""export: a bundle's chosen model in other forms, each proven against torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from secateur.core.bundle import Bundle
from secateur.core.errors import OutputError
from secateur.core.files import clear_errors
from secateur.core.task import Workload
from secateur.export import formats
from secateur.export.bundles import export_bundle
from secateur.export.parity import Parity
from secateur.verbs.report import FILE, report
from secateur.verbs.sources import AnyBundle, AnyWorkload, compressed_model, open_bundle, workload_of


@dataclass(frozen=True)
class Artefact:
    """A file that was exported, and how exactly it agrees with the model in torch."""

    format: str
    path: Path
    parity: Parity


def export(
    bundle: AnyBundle,
    to: str | Iterable[str] = ("onnx",),
    out: str | os.PathLike[str] | None = None,
    *,
    workload: AnyWorkload | None = None,
    force: bool = False,
) -> list[Artefact]:
    """Export a bundle's chosen model.

    Args:
        to: formats.
        out: folder for the files; without it they become artefacts of the bundle, older ones being replaced.
        workload: of the bundle, instead of the one that it refers to.
        force: replace files in `out`.

    Raises:
        ExportError: an unknown format, or a model that a format cannot express.
        ParityError: a file that does not compute the same; it is not kept.
        OutputError: `out` holds a file of that name.
    """
    opened = open_bundle(bundle)
    wanted = [name.strip() for text in ([to] if isinstance(to, str) else to) for name in text.split(",")]
    exporters = {name: formats.get(name) for name in wanted}
    found = workload_of(opened, workload)
    if out is None:
        return _into_bundle(opened, found, wanted)
    model, results = compressed_model(opened, found), []
    with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
        for name, exporter in exporters.items():
            folder = Path(temporary) / name
            folder.mkdir()
            exported = exporter(model, found, folder)
            _move(folder, Path(out), force)
            results.append(Artefact(name, Path(out) / exported.path.name, exported.parity))
    return results


def _into_bundle(bundle: Bundle, workload: Workload, wanted: list[str]) -> list[Artefact]:
    bundle = export_bundle(bundle, compressed_model(bundle, workload), workload, wanted)
    if FILE in bundle.manifest.files:
        report(bundle, workload=workload)
    return [
        Artefact(each.format, bundle.file(each.path), Parity(each.max_abs, each.mean_abs, each.metrics, each.samples))
        for each in bundle.manifest.artefacts
        if each.format in wanted
    ]


def _move(source: Path, destination: Path, force: bool) -> None:
    with clear_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir()):
            place = destination / file.name
            if place.exists() and not force:
                raise OutputError(f"{place} exists", "choose another folder with -o, or replace it with --force")
            shutil.move(file, place)
