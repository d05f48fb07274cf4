"""Two pictures of one class each on one canvas: the tasks `left` and `right` ask which classes they are.

The classic small multi-task benchmark, as MultiMNIST and MultiFashion in Sener and Koltun (NeurIPS 2018) and Lin et al.
(NeurIPS 2019): both pictures lie at opposite corners of a larger canvas and overlap in its middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.errors import WorkloadError
from secateur.core.task import Task
from secateur.workloads.loader import Batch
from secateur.workloads.metrics import Accuracy
from secateur.workloads.raycast import Array

SIDES = ("left", "right")


def tasks() -> tuple[Task, ...]:
    return tuple(Task(side, F.cross_entropy, Accuracy(), "higher") for side in SIDES)


def overlay(images: Tensor, labels: Tensor, pairs: int, canvas: int, seed: int) -> Batch:
    """Draw pairs of pictures and lay one at the top left, one at the bottom right; the brighter pixel wins.

    Args:
        images: uint8 [M, H, W] with H, W <= canvas; labels: [M].

    Returns:
        uint8 [pairs, 1, canvas, canvas] and {"left": classes [pairs], "right": classes [pairs]}.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(len(images), (pairs,), generator=generator) for _ in SIDES)
    height, width = images.shape[1:]
    canvases = torch.zeros(pairs, 2, canvas, canvas, dtype=torch.uint8)
    canvases[:, 0, :height, :width] = images[left]
    canvases[:, 1, canvas - height :, canvas - width :] = images[right]
    return canvases.amax(dim=1, keepdim=True), {"left": labels[left], "right": labels[right]}


def prepare(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """Stored bytes → values in 0..1 and integer classes."""
    return inputs.float() / 255, {name: target.long() for name, target in targets.items()}


def render(task: str, value: Any, classes: Mapping[int, str]) -> Array:
    """Draw the input, or a task's class by its name as a picture of text, enlarged to be readable.

    Args:
        task: "input", "left" or "right".
        value: input [1, H, W] in 0..1; logits [K], or a class.

    Raises:
        WorkloadError: for a task that does not exist.
    """
    if task not in ("input", *SIDES):
        raise WorkloadError(f'no picture for "{task}"', f"pictures are drawn of: input, {', '.join(SIDES)}")
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if task == "input":
        gray = np.rint(np.clip(array.reshape(array.shape[-2:]), 0, 1) * 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    array = array.squeeze()
    return _text(classes[int(array.argmax() if array.ndim else array)])


def _text(text: str) -> Array:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (72, 72), "white")
    ImageDraw.Draw(picture).text((36, 36), text.replace(" ", "\n"), "black", anchor="mm", align="center")
    return np.asarray(picture)
