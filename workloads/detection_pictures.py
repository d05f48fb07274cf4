"""Pictures of boxes, for reports: uint8 arrays [H, W, 3]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.errors import WorkloadError
from secateur.workloads.average_precision import detections
from secateur.workloads.raycast import Array
from secateur.workloads.scene_pictures import PALETTE

SIDE = 192
"""Pixels of the drawn pictures."""
SURE = 0.4
"""Confidence from which a detection is drawn."""


@dataclass(frozen=True)
class Renderer:
    """`render(task, value)` of a detection workload: boxes on white, coloured and named by class."""

    classes: Sequence[str]

    def __call__(self, task: str, value: Any) -> Array:
        """Draw one sample's input, prediction or target.

        Args:
            task: "input", "box", "objectness" or "class".
            value: input [3, H, W] in 0..1; target [S, 5]; prediction [P, 4], whose boxes all are drawn faintly, or
                [P, 5 + K], of which confident detections are. A leading dimension of one sample is dropped.

        Raises:
            WorkloadError: for a task that does not exist.
        """
        if task not in ("input", "box", "objectness", "class"):
            raise WorkloadError(f'no picture for "{task}"', "pictures are drawn of: input, box, objectness, class")
        tensor = torch.as_tensor(value).detach().cpu().float()
        if task == "input":
            return _picture(tensor.reshape(tensor.shape[-3:]))
        return self._boxes(task, tensor.reshape(tensor.shape[-2:]))

    def _boxes(self, task: str, rows: Tensor) -> Array:
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", (SIDE, SIDE), "white")
        pen = ImageDraw.Draw(picture)
        for kind, box in _chosen(rows, len(self.classes)):
            colour = tuple(PALETTE[2 + kind % (len(PALETTE) - 2)].tolist()) if task == "class" else (64, 64, 64)
            faint = rows.shape[1] == 4
            x, y, width, height = (SIDE * box).tolist()
            pen.rectangle(
                (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
                outline=(208, 208, 208) if faint else colour,
                width=1 if faint else 2,
            )
            if task == "class":
                pen.text((x, y), self.classes[kind], colour, anchor="mm")
        return np.asarray(picture)


def _chosen(rows: Tensor, classes: int) -> list[tuple[int, Tensor]]:
    """(class, box) of what is to be drawn."""
    if rows.shape[1] == 4:
        return [(0, row) for row in rows]
    if rows.shape[1] == 5 and (rows[:, 0] == rows[:, 0].round()).all():  # a target: class and box
        return [(int(row[0]), row[1:]) for row in rows if row[0] >= 0]
    found = detections(rows[None], SURE)
    sure = found.scores[0] >= 0
    return list(zip(found.classes[0][sure].tolist(), found.boxes[0][sure], strict=True))


def _picture(image: Tensor) -> Array:
    from PIL import Image

    values = np.rint(np.clip(np.moveaxis(image.numpy(), 0, -1), 0, 1) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.NEAREST))
