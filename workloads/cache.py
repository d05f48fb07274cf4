"""Tensors that take a while to make, kept in the user's cache: made once, then read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.cache import cache_folder
from secateur.core.errors import OutputError
from secateur.core.files import writing
from secateur.core.progress import say


def cached(name: str, version: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives, from the cache or made now. A damaged file, or one of another version, is made again; a cache
    that cannot be written costs only time."""
    path = cache_folder() / f"{name}.safetensors"
    found = _read(path, version)
    if found is not None:
        return found
    tensors = make()
    try:
        with writing(path) as temporary:
            save_file(tensors, temporary, {"version": version, "sha256": _digest(tensors)})
    except (OutputError, SafetensorError) as error:
        say(f"not kept for the next run: {error}")
    return tensors


def _read(path: Path, version: str) -> dict[str, Tensor] | None:
    """What is cached, unless it is missing, damaged or of another version."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    sound = metadata.get("version") == version and metadata.get("sha256") == _digest(tensors)
    return tensors if sound else None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
