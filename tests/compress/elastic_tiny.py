"""A small two-task CNN on pictures of one bright square, as `squares.py` draws them, made elastic.

`python elastic_tiny.py STATE OUT ACCUMULATE` trains it and writes the weights, so that tests can kill or distribute it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from squares import batches, layer, tasks
from torch import Tensor, nn

from secateur.compress import ranks
from secateur.compress.dataflow import trace
from secateur.compress.journal import Journal
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.features import find_features
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.space import Space
from secateur.compress.slimmable.train import train
from secateur.core.task import Workload

FAST = Settings(epochs=3, round_to=2, calibration_samples=None, lr=3e-3)


class Squares(nn.Module):
    """An encoder of two stages, two decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = layer(3, 8), layer(8, 16, 2)
        self.quadrant = nn.Sequential(layer(16, 8), nn.Flatten(), nn.Linear(8 * 16, 4))
        self.brightness = nn.Sequential(layer(16, 8), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.deep(self.stem(x))
        return {"quadrant": self.quadrant(x), "brightness": self.brightness(x)}


def workload(model: nn.Module | None = None) -> Workload:
    if model is None:
        torch.manual_seed(0)
        model = Squares()
    return Workload(
        "squares", model.eval(), torch.randn(1, 3, 8, 8), tasks(), train=batches(1, 8), calibration=batches(2, 4),
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
    torch.set_num_threads(1)
    settings = replace(FAST, accumulate=int(accumulate))
    model, _ = trained(settings, Journal(Path(state), {"seed": 3}, resume=True))
    safetensors.torch.save_file(model.model.state_dict(), f"{out}-{ranks.rank()}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
