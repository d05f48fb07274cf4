"""The formats a bundle can be exported to: one dictionary, one decorator, one module per format.

    @exporter("onnx")
    def export(model, workload, folder) -> Exported: ...

A module of `export/` that registers itself here is known to the command line as soon as `bundles.py` imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.core.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.task import Workload
    from secateur.export.parity import Parity


@dataclass(frozen=True)
class Exported:
    """A file that an exporter wrote, and the proof that it computes the same."""

    path: Path
    parity: Parity


Exporter = Callable[["nn.Module", "Workload", Path], Exported]
"""`exporter(model, workload, folder)` writes the artefact into the folder and raises ParityError if it differs."""

_exporters: dict[str, Exporter] = {}


def exporter(name: str) -> Callable[[Exporter], Exporter]:
    """Register an exporter under the name that users type."""

    def register(function: Exporter) -> Exporter:
        _exporters[name] = function
        return function

    return register


def known() -> tuple[str, ...]:
    """Names of the formats that this version exports."""
    return tuple(sorted(_exporters))


def get(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        ExportError: when this version has none; the hint lists those it has.
    """
    if name not in _exporters:
        raise ExportError(f'this version has no exporter for "{name}"', f"it exports to: {', '.join(known())}")
    return _exporters[name]
