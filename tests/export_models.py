"""Small multi-task models, one per hard case of export, and a workload around any of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from toy_metrics import AbsoluteError

from secateur.core.task import Task, Workload


def warmed(model: nn.Module) -> nn.Module:
    """Batch-norm statistics that differ from their initial values, so that forgetting them would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


class OneConvolution(nn.Module):
    """A convolution for the task `depth`, to which a test adds what cannot be exported."""

    tasks = ("depth",)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)


class OddChannels(nn.Module):
    """A convolutional encoder of 13 and 7 channels; nested output with an auxiliary head that is no task.

    One task is called `relu` as an operator is: names of outputs must not collide with inner ones.
    """

    tasks = ("depth", "relu")

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(self._block(3, 13), nn.MaxPool2d(2), self._block(13, 7))
        self.heads = nn.ModuleDict({name: nn.Conv2d(7, 2, 1) for name in self.tasks})
        self.auxiliary = nn.Conv2d(7, 1, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Any]:
        shared = nn.functional.interpolate(self.encoder(x), scale_factor=2, mode="bilinear")
        final = {name: head(shared) for name, head in self.heads.items()}
        return {"final": final, "auxiliary": self.auxiliary(shared)}


class OneTaskAtATime(nn.Module):
    """Called as `forward(x, task)`, as conditional models are."""

    tasks = ("left", "right")

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 5, 3)
        self.heads = nn.ModuleDict({name: nn.Linear(5, 3) for name in self.tasks})

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.heads[task](self.shared(x).mean((2, 3)))


class TinyViT(nn.Module):
    """Patches, self-attention, layer norms, GELU; two heads on the mean token."""

    tasks = ("kind", "size")

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.kind, self.size = nn.Linear(12, 5), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.patch(x).flatten(2).transpose(1, 2)  # [N, 16, 12]
        normal = self.norm(tokens)
        tokens = tokens + self.attention(normal, normal, normal, need_weights=False)[0]
        pooled = (tokens + self.mlp(self.norm2(tokens))).mean(1)
        return {"kind": self.kind(pooled), "size": self.size(pooled)}


class TwoInputs(nn.Module):
    """An image and a vector; both tasks return the very same tensor."""

    tasks = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(4, 6)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        both = self.conv(image).mean((2, 3)) + self.linear(vector)
        return {"a": both, "b": both}


def example(model: nn.Module, size: int = 1) -> Any:
    """A random input of `size` samples, as the model takes it."""
    image = torch.randn(size, 3, 16, 16)
    return (image, torch.randn(size, 4)) if isinstance(model, TwoInputs) else image


def make_workload(model: nn.Module, batches: int = 2, size: int = 3) -> Workload:
    """A workload of random images whose targets are zeros."""
    from secateur.core.predict import predict

    tasks = tuple(Task(name, nn.functional.l1_loss, AbsoluteError(), "lower") for name in model.tasks)
    data = []
    with torch.no_grad():
        for _ in range(batches):
            inputs = example(model, size)
            data.append((inputs, {name: torch.zeros_like(v) for name, v in predict(model, inputs, tasks).items()}))
    return Workload("tiny", model, example(model), tasks, data, data, data)
