"""verify: every byte of a bundle, and every artefact against the torch model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from secateur.core.bundle import Artefact, Bundle
from secateur.core.errors import BundleError, ParityError, WorkloadError
from secateur.core.task import Workload
from secateur.export.onnx_session import OnnxModel
from secateur.export.parity import Parity, Predictor, check_parity
from secateur.verbs.sources import AnyBundle, AnyWorkload, compressed_model, open_bundle, workload_of

_RUNNERS: dict[str, Callable[[Any], Predictor]] = {"onnx": lambda path: OnnxModel(path).predict}
"""How an artefact of each format is run here."""


@dataclass(frozen=True)
class Verification:
    """What was found to be right. `skipped` says why artefacts were not run, None when they were."""

    bundle: Bundle
    files: int
    parity: dict[str, Parity]
    skipped: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `verify --json`."""
        return {
            "bundle": str(self.bundle.path),
            "schema_version": self.bundle.manifest.schema_version,
            "files": self.files,
            "parity": {path: asdict(parity) for path, parity in self.parity.items()},
            "skipped": self.skipped,
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
        return Verification(opened, files, {}, f"{error.message}: {error.hint}")
    model = compressed_model(opened, found)
    return Verification(
        opened, files, {each.path: _rerun(opened, each, model, found) for each in opened.manifest.artefacts}
    )


def _rerun(bundle: Bundle, artefact: Artefact, model: nn.Module, workload: Workload) -> Parity:
    if artefact.format not in _RUNNERS:
        raise ParityError(f"this version cannot run {artefact.path}", "upgrade with: pip install -U secateur")
    return check_parity(model, _RUNNERS[artefact.format](bundle.checked_file(artefact.path)), workload)
