"""The splits of the `scenes` data: rendered once, then read from the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.errors import OutputError
from secateur.core.files import writing
from secateur.core.progress import say
from secateur.workloads.scene_images import images

VERSION = "2"
"""Raise it when what is rendered changes: cached files of another version are rendered again."""
SPLITS = {
    "train": range(0, 3072),
    "calibration": range(1_000_000, 1_000_256),
    "test": range(2_000_000, 2_000_512),
}
"""Seeds of the scenes of each split: disjoint, so no scene is in two of them."""


def split(name: str) -> dict[str, Tensor]:
    """The tensors of `images(SPLITS[name])`, normals in float16, from the cache or rendered now (seconds).

    A cache that cannot be written costs only time.
    """
    path = Path(platformdirs.user_cache_dir("secateur")) / f"scenes-{name}.safetensors"
    cached = _read(path)
    if cached is not None:
        return cached
    say(f"rendering the {name} split of scenes ({len(SPLITS[name])} pictures)")
    tensors = {key: torch.from_numpy(value).contiguous() for key, value in images(SPLITS[name]).items()}
    tensors["normals"] = tensors["normals"].half()
    try:
        with writing(path) as temporary:
            save_file(tensors, temporary, {"version": VERSION, "sha256": _digest(tensors)})
    except (OutputError, SafetensorError) as error:
        say(f"not kept for the next run: {error}")
    return tensors


def _read(path: Path) -> dict[str, Tensor] | None:
    """What is cached, unless it is missing, damaged or of another version."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    sound = metadata.get("version") == VERSION and metadata.get("sha256") == _digest(tensors)
    return tensors if sound else None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
