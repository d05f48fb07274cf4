"""A small over-wide two-task CNN on pictures of one bright square, as `squares.py` draws them.

`python tiny.py WEIGHTS STATE OUT BUDGET` prunes it and writes the result, so that a test can kill it.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from squares import batches, layer, tasks
from torch import Tensor, nn

from secateur.compress.pagcp import Settings, prune
from secateur.core.budget import Budget, Tolerance
from secateur.core.task import Workload

FAST = Settings(rounds=2, epochs=3, calibration_samples=32, max_passes=6)
noisy = partial(batches, noisy=True)


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


def workload(model: nn.Module) -> Workload:
    return Workload(
        "squares", model.eval(), torch.randn(1, 3, 8, 8), tasks(), train=noisy(1, 6), calibration=noisy(2, 2),
        test=noisy(3, 2), factory=Squares, reference="tiny:workload",
    )  # fmt: skip


def trained(steps: int = 150) -> nn.Module:
    """Trained for a second."""
    torch.manual_seed(0)
    model = Squares()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    data = noisy(1, 24)
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
