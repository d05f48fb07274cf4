"""Models that are called or built in unusual ways, pruned by each criterion and mended: once they ended in errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_metrics import AbsoluteError

import secateur as sc
from secateur.compress.pagcp.compensation import estimate_statistics
from secateur.compress.pagcp.settings import Settings
from secateur.core.task import Task, Workload


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 16), nn.Linear(16, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.wide(self.stem(x).relu().mean((2, 3))).relu()

    def forward(self, x: Tensor) -> Any:
        return {"size": self.head(self.features(x))}


class OneTask(Plain):
    """A dict from a call for its only task."""

    def forward(self, x: Tensor, task: str = "size") -> Any:
        return {"value": self.head(self.features(x))}


class WithMask(Plain):
    """A prediction with whole numbers and truth values in it."""

    def forward(self, x: Tensor) -> Any:
        value = self.head(self.features(x))
        return {"size": (value, value > 0, value.argmax(1))}


class ByName(Plain):
    """A layer that is called with its input by name, and one that is given a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.embedding = nn.Linear(4, 16), nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Any:
        features = self.wide(input=self.stem(x).relu().mean((2, 3))) + self.shift(self.embedding[0])
        return {"size": self.head(features.relu())}


class Pooled(Plain):
    """A batch norm of one value for each channel (an image at a time), and one that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.extra = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        nn.init.constant_(self.extra.running_mean, 3.0)

    def forward(self, x: Tensor) -> Any:
        found = self.stem(x).relu()
        if self.training:
            self.extra(found)
        return {"size": self.head(self.wide(self.norm(found.mean((2, 3), keepdim=True)).flatten(1)).relu())}


class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


def first(prediction: Any) -> Tensor:
    prediction = prediction["value"] if isinstance(prediction, dict) else prediction
    return prediction[0] if isinstance(prediction, tuple) else prediction


class Error(AbsoluteError):
    def update(self, prediction: Any, target: Tensor) -> None:
        super().update(first(prediction), target)


def workload(model: nn.Module, batch: int = 4) -> Workload:
    torch.manual_seed(0)
    data = [(torch.randn(batch, 3, 8, 8), {"size": torch.randn(batch, 2)}) for _ in range(4)]
    task = Task("size", lambda prediction, target: (first(prediction) - target).pow(2).mean(), Error(), "lower")
    return Workload("unusual", model, data[0][0], [task], data, data, data)


@pytest.mark.parametrize("saliency", ["l1", "taylor", "reconstruction"])
@pytest.mark.parametrize("kind", [OneTask, WithMask, ByName, Pooled, Frozen])
def test_it_is_pruned(kind: type[nn.Module], saliency: str) -> None:
    settings = Settings(rounds=1, epochs=0, saliency=saliency, compensate=True, chunks=2)
    found = sc.prune(workload(kind().eval()), "flops<=70%", "90%", settings=settings)
    assert found.costs.flops < found.costs_before.flops


def test_norms_that_do_not_run_keep_their_statistics() -> None:
    made = workload(Pooled().eval(), batch=1)
    estimate_statistics(made.model, made.calibration, made.tasks)
    assert torch.equal(made.model.extra.running_mean, torch.full((8,), 3.0))
    assert torch.equal(made.model.norm.running_var, torch.ones(8))


def test_frozen_parameters_stay_frozen() -> None:
    model = Frozen().eval()
    settings = Settings(rounds=1, epochs=0, saliency="taylor", chunks=2)
    sc.prune(workload(model), "flops<=70%", "90%", settings=settings)
    assert not any(parameter.requires_grad for parameter in model.parameters())
