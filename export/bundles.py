"""Artefacts of a bundle: exported, proven, and added to the bundle as a whole or not at all."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from secateur.core.bundle import Artefact, Bundle, changed_bundle
from secateur.core.errors import MissingExtraError
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export import formats
from secateur.export.formats import Exported, Request
from secateur.export.load import load_formats
from secateur.export.source import Source

load_formats()
FOLDER = "artefacts"


def export_bundle(bundle: Bundle, model: nn.Module, workload: Workload, to: Iterable[str | Request]) -> Bundle:
    """Export the bundle's chosen model and add the artefacts to the bundle.

    Args:
        model: the bundle's chosen point, rebuilt; it is not changed.
        workload: gives the example input, the tasks and the test samples for the parity check.
        to: formats. An older artefact of the same name is replaced.

    Returns:
        The bundle, opened again.

    Raises:
        ExportError: an unknown format, or a model that a format cannot express.
        MissingExtraError: none of the formats has its packages installed; a warning tells of single ones.
        ParityError: an artefact that does not compute the same. In all cases the bundle stays as it was.
    """
    requests = [Request(each) if isinstance(each, str) else each for each in to]
    formats.check_requests(requests)
    with Scratch() as temporary, changed_bundle(bundle) as (folder, finish):
        added: list[Artefact] = []
        for request, exported in export_all(model, workload, requests, Path(temporary)):
            _adopt(exported, folder / FOLDER)
            added.append(_entry(request, exported))
        names = {each.path for each in added}
        kept = [each for each in bundle.manifest.artefacts if each.path not in names]
        finish(bundle.manifest.model_copy(update={"artefacts": [*kept, *added]}))
    return Bundle.open(bundle.path)


def export_all(
    model: nn.Module, workload: Workload, requests: Iterable[Request], folder: Path
) -> list[tuple[Request, Exported]]:
    """Every artefact of every request, each request in a folder of its own below `folder`.

    Raises:
        ExportError, MissingExtraError, ParityError: see `export_bundle`.
    """
    done = []
    with Source(model, workload) as source:
        for number, request in enumerate(_possible(requests)):
            place = folder / str(number)
            place.mkdir()
            exporter = formats.get(request.format)
            options = formats.honoured(exporter, request.options)
            done += [(request, each) for each in exporter.export(source, place, options)]
    return done


def _possible(requests: Iterable[Request]) -> list[Request]:
    """Those whose packages are installed; a warning tells of the others.

    Raises:
        MissingExtraError: none is left.
    """
    possible: list[Request] = []
    missing: dict[str, MissingExtraError] = {}
    for request in requests:
        try:
            formats.get(request.format).require()
            possible.append(request)
        except MissingExtraError as error:
            missing[request.format] = error
    if missing and not possible:
        raise next(iter(missing.values()))
    for name, reason in missing.items():
        warnings.warn(f"{name} is left out: {reason.message}; {reason.hint}", stacklevel=3)
    return possible


def _adopt(exported: Exported, folder: Path) -> None:
    """Move an artefact's files into the bundle's folder; what stands there is unlinked, not written into."""
    folder.mkdir(exist_ok=True)
    for path in (exported.written.path, *exported.written.beside):
        (folder / path.name).unlink(missing_ok=True)
        shutil.move(path, folder / path.name)


def _entry(request: Request, exported: Exported) -> Artefact:
    written, parity = exported.written, exported.parity
    options = formats.honoured(formats.get(request.format), request.options)
    return Artefact(
        format=request.format,
        path=f"{FOLDER}/{written.path.name}",
        beside=[f"{FOLDER}/{path.name}" for path in written.beside],
        options=options.asked(),
        details=dict(written.details),
        max_abs=parity.max_abs if parity else None,
        mean_abs=parity.mean_abs if parity else None,
        metrics=parity.metrics if parity else {},
        samples=parity.samples if parity else 0,
        unproven=exported.unproven,
    )
