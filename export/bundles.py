"""Artefacts of a bundle: exported, proven, and added to the bundle as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

import secateur.export.onnx  # noqa: F401 - registers its format
from secateur.core.bundle import Artefact, Bundle, changed_bundle
from secateur.core.errors import ExportError
from secateur.core.task import Workload
from secateur.export import formats

FOLDER = "artefacts"


def export_bundle(bundle: Bundle, model: nn.Module, workload: Workload, to: Iterable[str]) -> Bundle:
    """Export the bundle's chosen model and add the artefacts to the bundle.

    Args:
        model: the bundle's chosen point, rebuilt; it is not changed.
        workload: gives the example input, the tasks and the test samples for the parity check.
        to: names of formats. An older artefact of the same format is replaced.

    Returns:
        The bundle, opened again.

    Raises:
        ExportError: an unknown format, or a model that a format cannot express.
        ParityError: an artefact that does not compute the same. In both cases the bundle stays as it was.
    """
    wanted = {name: formats.get(name) for name in to}
    if not wanted:
        raise ExportError("no format was named", f"this version exports to: {', '.join(formats.known())}")
    with changed_bundle(bundle) as (folder, finish):
        kept = [artefact for artefact in bundle.manifest.artefacts if artefact.format not in wanted]
        for artefact in bundle.manifest.artefacts:
            if artefact not in kept:
                (folder / artefact.path).unlink(missing_ok=True)
        (folder / FOLDER).mkdir(exist_ok=True)
        added = [_entry(name, export(model, workload, folder / FOLDER), folder) for name, export in wanted.items()]
        finish(bundle.manifest.model_copy(update={"artefacts": [*kept, *added]}))
    return Bundle.open(bundle.path)


def _entry(name: str, exported: formats.Exported, folder: Path) -> Artefact:
    parity = exported.parity
    return Artefact(
        format=name,
        path=exported.path.relative_to(folder).as_posix(),
        max_abs=parity.max_abs,
        mean_abs=parity.mean_abs,
        metrics=parity.metrics,
        samples=parity.samples,
    )
