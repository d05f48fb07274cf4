"""A small two-task CNN on pictures of one bright square, elastic: where it lies, and how bright it is.

`python elastic_tiny.py STATE OUT ACCUMULATE` trains it and writes the weights, so that tests can kill or distribute it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from secateur.compress.dataflow import trace
from secateur.compress.journal import Journal
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.features import find_features
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.space import Space
from secateur.compress.slimmable.train import train
from secateur.core.task import Batch, Task, Workload

FAST = Settings(epochs=3, round_to=2, calibration_samples=None, lr=3e-3)


class Squares(nn.Module):
    """An encoder of two stages, two decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = layer(3, 8), layer(8, 16, 2)
        self.where = nn.Sequential(layer(16, 8), nn.Flatten(), nn.Linear(8 * 16, 4))
        self.bright = nn.Sequential(layer(16, 8), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.deep(self.stem(x))
        return {"where": self.where(x), "bright": self.bright(x)}


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def batches(seed: int, count: int, size: int = 16) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    return [batch(draw, size) for _ in range(count)]


def batch(draw: torch.Generator, size: int) -> Batch:
    images = 0.1 * torch.randn(size, 3, 8, 8, generator=draw)
    where = torch.randint(4, (size,), generator=draw)
    value = 0.5 + torch.rand(size, generator=draw)
    for image, place, bright in zip(images, where.tolist(), value, strict=True):
        image[:, 4 * (place // 2) + 1 :, 4 * (place % 2) + 1 :][:, :2, :2] += bright
    return images, {"where": where, "bright": value[:, None]}


class Mean:
    """A metric: the mean of a per-batch score."""

    def __init__(self, score: Any) -> None:
        self.score, self.total, self.count = score, 0.0, 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.total += float(self.score(prediction, target)) * len(target)
        self.count += len(target)

    def compute(self) -> float:
        return self.total / self.count


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target).float().mean()


def error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs().mean()


def workload(model: nn.Module | None = None) -> Workload:
    if model is None:
        torch.manual_seed(0)
        model = Squares()
    tasks = (
        Task("where", nn.functional.cross_entropy, Mean(accuracy), "higher"),
        Task("bright", nn.functional.mse_loss, Mean(error), "lower", weight=4.0),
    )
    return Workload(
        "squares", model.eval(), torch.randn(1, 3, 8, 8), tasks, train=batches(1, 8), calibration=batches(2, 4),
        test=batches(3, 4), factory=Squares, reference="elastic_tiny:workload",
    )  # fmt: skip


def elastic(found: Workload, settings: Settings = FAST) -> ElasticModel:
    space = Space.of(trace(found.model, found.calibration[0][0][:2]), found.task_names, settings.rule)
    return ElasticModel(found.model, space, private=settings.private_norms)


def trained(settings: Settings = FAST, journal: Journal | None = None) -> tuple[ElasticModel, list[dict[str, Any]]]:
    found = workload()
    model = elastic(found, settings)
    features = find_features(model.space, found.calibration[0][0][:2])
    return model, train(
        model, found, settings, features=features, seed=3, journal=journal or Journal(None, {}, resume=False)
    )


def main(state: str, out: str, accumulate: str) -> None:
    from dataclasses import replace

    from secateur.compress.slimmable.distributed import process_group

    torch.set_num_threads(1)
    with process_group() as (rank, _):
        settings = replace(FAST, accumulate=int(accumulate))
        model, _ = trained(settings, Journal(Path(state), {"seed": 3}, resume=True))
        safetensors.torch.save_file(model.model.state_dict(), f"{out}-{rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
