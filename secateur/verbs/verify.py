"""verify: every byte of a bundle, and every artefact against the torch model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import secateur.export.bundles  # noqa: F401 - makes all formats known
from secateur.core.bundle import Artefact, Bundle
from secateur.core.errors import (
    BundleError,
    MissingExtraError,
    ParityError,
    SecateurError,
    TargetUnavailableError,
    WorkloadError,
)
from secateur.export import formats
from secateur.export.formats import Options
from secateur.export.parity import Parity
from secateur.export.source import Source
from secateur.verbs.sources import AnyBundle, AnyWorkload, compressed_model, open_bundle, workload_of


@dataclass(frozen=True)
class Verification:
    """What was found to be right. `skipped` says why no artefact was run, None when they were; `not_run` why single
    ones were not."""

    bundle: Bundle
    files: int
    parity: dict[str, Parity]
    skipped: str | None = None
    not_run: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The document of `verify --json`."""
        return {
            "bundle": str(self.bundle.path),
            "schema_version": self.bundle.manifest.schema_version,
            "files": self.files,
            "parity": {path: asdict(parity) for path, parity in self.parity.items()},
            "skipped": self.skipped,
            "not_run": self.not_run,
        }


def verify(bundle: AnyBundle, *, workload: AnyWorkload | None = None) -> Verification:
    """Check hashes and schema, and run every artefact beside the rebuilt model.

    Args:
        workload: of the bundle, instead of the one that it refers to.

    Raises:
        BundleError: a changed, missing or foreign file; a newer schema.
        ParityError: an artefact that does not compute what the model computes.
    """
    opened = open_bundle(bundle)
    if problems := opened.verify():
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(f"{problems[0]}{more}", "copy the bundle again, or compress again")
    files = len(opened.manifest.files) + 1
    try:
        found = workload_of(opened, workload)
    except WorkloadError as error:
        if workload is not None:
            raise
        return Verification(opened, files, {}, _sentence(error))
    parity: dict[str, Parity] = {}
    not_run: dict[str, str] = {}
    with Source(compressed_model(opened, found), found) as source:
        for each in opened.manifest.artefacts:
            try:
                parity[each.path] = _rerun(opened, each, source)
            except (TargetUnavailableError, MissingExtraError) as error:
                not_run[each.path] = _sentence(error)
    return Verification(opened, files, parity, not_run=not_run)


def _rerun(bundle: Bundle, artefact: Artefact, source: Source) -> Parity:
    if artefact.format not in formats.known():
        raise ParityError(f"this version cannot run {artefact.path}", "upgrade with: pip install -U secateur")
    for name in artefact.beside:
        bundle.checked_file(name)
    exporter = formats.get(artefact.format)
    return exporter.prove(bundle.checked_file(artefact.path), source, Options.of(artefact.options))


def _sentence(error: SecateurError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message
