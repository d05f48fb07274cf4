"""Pictures inside the page: PNG data URIs, small enough that the whole report stays below two megabytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.profiles.report.content import Picture, Report, Sample

PIXELS = 350_000  # of all pictures together; a PNG of pure noise takes 4 bytes of base64 a pixel
ROLES = ("label", "before", "after")


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the section, or None without samples."""
    if not report.samples:
        return None
    side = side_limit(report.samples)
    return {"roles": ROLES, "samples": [_sample(sample, side) for sample in report.samples]}


def side_limit(samples: Sequence[Sample]) -> int:
    """Longest side of a picture in pixels, so that all of them fit."""
    pictures = sum(1 + sum(map(len, sample.tasks.values())) for sample in samples)
    return max(24, min(256, math.isqrt(PIXELS // max(pictures, 1))))


def data_uri(picture: Picture, side: int = 256) -> str:
    """A PNG data URI of an array [H, W, 3] or [H, W], uint8; shrunk so that no side is longer than `side`.

    Raises:
        ValueError: for another shape or type.
    """
    from PIL import Image

    array = np.asarray(picture)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"a picture is a uint8 array [H, W, 3] or [H, W], not {array.dtype} {list(array.shape)}")
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((side, side), Image.Resampling.NEAREST)  # nearest: class colours must not mix
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def check_pictures(sample: Sample) -> None:
    """Raises:
    ValueError: a picture that cannot be shown.
    """
    for picture in (sample.input, *(each for roles in sample.tasks.values() for each in roles.values())):
        data_uri(picture, 1)


def _sample(sample: Sample, side: int) -> dict[str, Any]:
    tasks = {
        task: {role: data_uri(pictures[role], side) for role in ROLES if role in pictures}
        for task, pictures in sample.tasks.items()
    }
    return {"input": data_uri(sample.input, side), "tasks": tasks}
