"""load: a bundle back into the user's own class.

load("runs/mine").model(make_net)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from secateur.compress.compressed import load_model
from secateur.compress.experts.banked import Bank
from secateur.core.bundle import Bundle, Manifest
from secateur.verbs.export import Artefact, export
from secateur.verbs.sources import AnyBundle, compressed_model, open_bundle, workload_of


@dataclass(frozen=True)
class Loaded:
    """A bundle that was opened."""

    bundle: Bundle

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def export(self, to: str | Iterable[str] = ("onnx",), out: str | os.PathLike[str] | None = None) -> list[Artefact]:
        """As `secateur.api.export`: the chosen model in other forms, into the folder `out` or into the bundle."""
        return export(self.bundle, to, out)

    def model(self, factory: Callable[[], nn.Module] | None = None, point: int | None = None) -> nn.Module:
        """The compressed model, in evaluation mode.

        Args:
            factory: makes a full-size instance of the model's class; that of the bundle's workload by default.
            point: number of the saved point, from large to small; the chosen one by default.

        Raises:
            BundleError: changed or truncated files, or a class that does not fit.
            WorkloadError: no factory was given and the bundle's workload cannot be loaded.
        """
        if factory is not None:
            return load_model(self.bundle, factory, point)
        return compressed_model(self.bundle, workload_of(self.bundle), point)

    def bank(self, factory: Callable[[], nn.Module] | None = None) -> Bank:
        """The bank of task sets that the bundle is: models that share their trunk, each loaded by the bytes it needs.

        Args:
            factory: as for `model`.

        Raises:
            BundleError: the bundle is no bank, or a damaged one.
        """
        if factory is None:
            found = workload_of(self.bundle)
            factory = found.factory or (lambda: found.model)
        return Bank(self.bundle, factory)


def load(path: AnyBundle) -> Loaded:
    """Open a bundle.

    Raises:
        BundleError: not a bundle, a newer schema, a damaged manifest, a missing file.
    """
    return Loaded(open_bundle(path))
