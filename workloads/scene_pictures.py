"""Pictures of what goes into and comes out of the `scenes` network, for reports: uint8 arrays [H, W, 3]."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from secateur.core.errors import WorkloadError
from secateur.workloads.raycast import Array

PALETTE = np.array(
    [
        (187, 187, 187),  # wall
        (102, 102, 102),  # floor
        (230, 159, 0),  # box
        (86, 180, 233),  # sphere
        (0, 158, 115),  # cylinder
        (240, 228, 66),  # cone
        (204, 121, 167),  # panel
    ],
    np.uint8,
)
"""Colours that remain distinct with colour-blind sight (Okabe and Ito, 2008)."""
DEPTH_RANGE = (1.0, 9.0)
"""Metres from the first to the last colour of depth pictures."""
_VIRIDIS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
     (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)],
    np.float32,
)  # fmt: skip


def render(task: str, value: Any) -> Array:
    """Draw one sample's input, prediction or target.

    Args:
        task: "input", "segmentation", "depth", "normals" or "edges".
        value: input [3, H, W] in 0..1; segmentation logits [K, H, W] or classes [H, W]; depth [1, H, W] in metres;
            normals [3, H, W]; edges as logits (floating, beyond 0..1) or as 0 and 1 [1, H, W]. A leading
            dimension of one sample is dropped.

    Raises:
        WorkloadError: for a task that does not exist.
    """
    if task not in _DRAW:
        raise WorkloadError(f'no picture for "{task}"', f"pictures are drawn of: {', '.join(_DRAW)}")
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    picture: Array = _DRAW[task](array)
    return picture


def _input(value: Array) -> Array:
    return _bytes(np.moveaxis(_sample(value, 3), 0, -1))


def _segmentation(value: Array) -> Array:
    if value.dtype.kind == "f":
        value = _sample(value, 3).argmax(axis=0)
    picture: Array = PALETTE[_sample(value, 2) % len(PALETTE)]  # other workloads have more classes
    return picture


def _depth(value: Array) -> Array:
    near, far = DEPTH_RANGE
    place = np.clip((_sample(value, 3)[0] - near) / (far - near), 0, 1) * (len(_VIRIDIS) - 1)
    stops = np.arange(len(_VIRIDIS))
    channels = [np.interp(place, stops, _VIRIDIS[:, channel]) for channel in range(3)]
    return _bytes(np.stack(channels, axis=-1) / 255)


def _normals(value: Array) -> Array:
    normals = np.moveaxis(_sample(value, 3), 0, -1).astype(np.float32)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return _bytes((normals / np.maximum(length, 1e-6) + 1) / 2)


def _edges(value: Array) -> Array:
    edges = _sample(value, 3)[0].astype(np.float32)
    if not np.isin(edges, (0, 1)).all():
        edges = 1 / (1 + np.exp(-edges))
    return _bytes(np.repeat(1 - edges[..., None], 3, axis=-1))


_DRAW = {"input": _input, "segmentation": _segmentation, "depth": _depth, "normals": _normals, "edges": _edges}


def _sample(value: Array, dimensions: int) -> Array:
    return value.reshape(value.shape[-dimensions:])


def _bytes(value: Array) -> Array:
    """0..1 → 0..255."""
    picture: Array = np.rint(np.clip(value, 0, 1) * 255).astype(np.uint8)
    return picture
