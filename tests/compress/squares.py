"""Pictures of one bright square, for two tasks: in which quadrant it lies, and how bright it is.

What the small models of the tests of compression have in common: data, tasks, and the layer they are made of.
"""

from __future__ import annotations

import torch
from torch import nn
from toy_metrics import AbsoluteError

from secateur.core.task import Batch, Task
from secateur.workloads.metrics import Accuracy


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def tasks() -> tuple[Task, ...]:
    return (
        Task("quadrant", nn.functional.cross_entropy, Accuracy(), "higher"),
        Task("brightness", nn.functional.mse_loss, AbsoluteError(), "lower", weight=4.0),
    )


def batches(seed: int, count: int, *, noisy: bool = False) -> list[Batch]:
    """Batches of 16 pictures [16, 3, 8, 8]. With noise in the labels, losses have a floor to be judged against."""
    draw = torch.Generator().manual_seed(seed)
    return [_batch(draw, 16, noisy) for _ in range(count)]


def _batch(draw: torch.Generator, size: int, noisy: bool) -> Batch:
    images = 0.1 * torch.randn(size, 3, 8, 8, generator=draw)
    quadrant = torch.randint(4, (size,), generator=draw)
    brightness = 0.5 + torch.rand(size, generator=draw)
    for image, where, value in zip(images, quadrant.tolist(), brightness, strict=True):
        top, left = 4 * (where // 2), 4 * (where % 2)
        image[:, top + 1 : top + 3, left + 1 : left + 3] += value
    if noisy:
        wrong = torch.rand(size, generator=draw) < 0.1
        quadrant = torch.where(wrong, torch.randint(4, (size,), generator=draw), quadrant)
        brightness = brightness + 0.1 * torch.randn(size, generator=draw)
    return images, {"quadrant": quadrant, "brightness": brightness[:, None]}
