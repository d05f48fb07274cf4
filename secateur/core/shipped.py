"""Bundles that ship with Secateur, by name: `secateur select scenes-elastic ...` finds one beside the workloads."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from secateur.core.bundle import Bundle, is_bundle

PLACE = "secateur.workloads"


def shipped(name: str) -> Path | None:
    """The folder of a bundle that ships under a name, or None."""
    found = importlib.util.find_spec(PLACE)
    if found is None or not found.submodule_search_locations or os.sep in name or name.startswith("."):
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / "bundles" / name
    return folder if name and is_bundle(folder) else None


def bundle_of(given: str | os.PathLike[str]) -> Bundle:
    """A bundle by its folder, or by the name of one that ships.

    Raises:
        BundleError: neither.
    """
    path = Path(given)
    found = None if path.exists() else shipped(os.fspath(given))
    bundle = Bundle.open(found or path)
    bundle.ships = found is not None
    return bundle
