"""A small over-wide two-task CNN on pictures of one bright square: in which quadrant it lies, and how bright it is.

`python tiny.py WEIGHTS STATE OUT [SETTING=VALUE ...]` prunes it and writes the result, so that a test can kill it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from secateur.compress.pagcp import Settings, prune
from secateur.core.budget import Budget, Tolerance
from secateur.core.task import Batch, Task, Workload

FAST = Settings(rounds=2, epochs=3, calibration_samples=32, max_passes=6)


class Squares(nn.Module):
    tasks = ("quadrant", "brightness")

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 12)
        self.block = nn.Sequential(layer(12, 10), nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.deep = layer(12, 16, stride=2)
        self.quadrant = nn.Sequential(layer(16, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))
        self.brightness = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = self.deep(torch.relu(x + self.block(x)))
        return {"quadrant": self.quadrant(x), "brightness": self.brightness(x.amax((2, 3)))}


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def batches(seed: int, count: int, size: int = 16) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    return [batch(draw, size) for _ in range(count)]


def batch(draw: torch.Generator, size: int) -> Batch:
    images = 0.1 * torch.randn(size, 3, 8, 8, generator=draw)
    quadrant = torch.randint(4, (size,), generator=draw)
    brightness = 0.5 + torch.rand(size, generator=draw)
    for image, where, value in zip(images, quadrant.tolist(), brightness, strict=True):
        top, left = 4 * (where // 2), 4 * (where % 2)
        image[:, top + 1 : top + 3, left + 1 : left + 3] += value
    labels = torch.where(torch.rand(size, generator=draw) < 0.1, torch.randint(4, (size,), generator=draw), quadrant)
    noise = 0.1 * torch.randn(size, generator=draw)  # so that losses have a floor to be judged against
    return images, {"quadrant": labels, "brightness": (brightness + noise)[:, None]}


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


def tasks() -> tuple[Task, ...]:
    return (
        Task("quadrant", nn.functional.cross_entropy, Mean(accuracy), "higher"),
        Task("brightness", nn.functional.mse_loss, Mean(error), "lower", weight=4.0),
    )


def workload(model: nn.Module) -> Workload:
    return Workload(
        "squares", model.eval(), torch.randn(1, 3, 8, 8), tasks(), train=batches(1, 6), calibration=batches(2, 2),
        test=batches(3, 2), factory=Squares, reference="tiny:workload",
    )  # fmt: skip


def trained(steps: int = 150) -> nn.Module:
    """Trained for a second."""
    torch.manual_seed(0)
    model = Squares()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    data = batches(1, 24)
    for step in range(steps):
        inputs, targets = data[step % len(data)]
        found = model.train()(inputs)
        loss = sum(task.weight * task.loss(found[task.name], targets[task.name]) for task in tasks())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(weights: str, state: str, out: str, budget: str) -> None:
    torch.set_num_threads(1)
    model = Squares()
    model.load_state_dict(safetensors.torch.load_file(weights))
    result = prune(
        workload(model), Budget.parse(budget), Tolerance.parse("5%"), FAST, seed=3, state=Path(state), resume=True
    )
    safetensors.torch.save_file(result.model.state_dict(), f"{out}.safetensors")
    figures = {"decisions": result.history["decisions"], "oracle": result.oracle, "metrics": result.metrics}
    Path(f"{out}.json").write_text(json.dumps(figures, sort_keys=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
