"""Boxes around the objects of a scene: exact, since the surface that every pixel sees is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.core.progress import say
from secateur.workloads.cache import cached
from secateur.workloads.raycast import Array
from secateur.workloads.scene_geometry import KINDS, SLOTS, draw
from secateur.workloads.scene_images import SIZE, images

VERSION = "1"
"""Raise it when what is rendered changes: cached files of another version are rendered again."""
SPLITS = {
    "train": range(0, 4096),
    "calibration": range(1_000_000, 1_000_256),
    "test": range(2_000_000, 2_000_512),
}
"""Seeds of the scenes of each split: disjoint, so no scene is in two of them."""
LEAST = 12
"""Pixels that must be seen of an object for it to count as one."""


def split(name: str) -> dict[str, Tensor]:
    """image uint8 [N, 3, 64, 64] and boxes float32 [N, SLOTS, 5], from the cache or rendered now (seconds)."""
    return cached(f"scenes-detect-{name}", VERSION, lambda: _render(SPLITS[name]))


def _render(seeds: range) -> dict[str, Tensor]:
    say(f"rendering {len(seeds)} scenes with boxes")
    rendered = images(seeds)
    boxes = visible_boxes(rendered["surface"], draw(seeds).kind)
    return {"image": torch.from_numpy(rendered["image"]).contiguous(), "boxes": torch.from_numpy(boxes)}


def visible_boxes(surface: Array, kind: Array) -> Array:
    """The tight box around the visible pixels of each object.

    Args:
        surface: [N, H, W] which surface each pixel sees, objects first.
        kind: [N, SLOTS] index into KINDS.

    Returns:
        float32 [N, SLOTS, 5]: class, or -1 for none; centre x, centre y, width, height in 0..1 of the picture.
    """
    rows = np.zeros((*kind.shape, 5), np.float32)
    rows[..., 0] = -1
    for slot in range(SLOTS):
        seen = surface == slot  # [N, H, W]
        counts = seen.sum(axis=(1, 2)) >= LEAST
        left, right = _extent(seen.any(axis=1))
        top, bottom = _extent(seen.any(axis=2))
        box = np.stack([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)], axis=-1) / (2 * SIZE)
        rows[counts, slot, 0] = kind[counts, slot]
        rows[counts, slot, 1:] = box[counts]
    return rows


def _extent(seen: Array) -> tuple[Array, Array]:
    """First index that is seen, and one past the last: [N, L] → [N], [N]."""
    return seen.argmax(axis=1), seen.shape[1] - seen[:, ::-1].argmax(axis=1)


CLASSES = KINDS
