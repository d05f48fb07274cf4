"""The splits of the `scenes` data: rendered once, then read from the user's cache."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.progress import say
from secateur.workloads.cache import cached
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
    """The labels of `images(SPLITS[name])`, normals in float16, from the cache or rendered now (seconds)."""
    return cached(f"scenes-{name}", VERSION, lambda: _render(name))


def _render(name: str) -> dict[str, Tensor]:
    say(f"rendering the {name} split of scenes ({len(SPLITS[name])} pictures)")
    rendered = images(SPLITS[name])
    del rendered["surface"]
    tensors = {key: torch.from_numpy(value).contiguous() for key, value in rendered.items()}
    tensors["normals"] = tensors["normals"].half()
    return tensors
