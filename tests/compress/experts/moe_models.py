"""Small mixtures of experts and workloads around them: seconds to extract, the same every time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.task import Batch, Task, Workload
from secateur.workloads.metrics import AbsoluteRelativeError, Mean
from secateur.workloads.models.m3vit import M3ViT

SIZE, PATCH = 16, 4
TASKS = ("depth", "edges", "parts")


class Error(Mean):
    """Mean absolute difference."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs()


def m3vit(**changes: Any) -> M3ViT:
    """Two mixtures of six experts, three tasks. The tasks' routers prefer different experts."""
    given: dict[str, Any] = {
        "size": (SIZE, SIZE), "outputs": dict.fromkeys(TASKS, 1), "width": 16, "depth": 4, "heads": 2, "patch": PATCH,
        "ratio": 2.0, "experts": 6, "top_k": 2, "channels": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    model = M3ViT(**{**given, **changes}).eval()
    with torch.no_grad():
        for block in model.blocks[1::2]:
            block.norm2.bias.fill_(1.0)  # a direction that every token has, by which routers tell tasks apart
            for number, gate in enumerate(block.mlp.router.gates.values()):
                gate.weight.mul_(10)
                gate.weight[number : number + 3] += 0.5
    return model


def batches(count: int, seed: int, size: int = 4) -> list[Batch]:
    noise = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.rand(size, 3, SIZE, SIZE, generator=noise)
        gray = x.mean(1, keepdim=True)
        made.append((x, {"depth": gray + 1, "edges": gray - 0.5, "parts": 2 * gray}))
    return made


def workload(model: nn.Module | None = None, tasks: tuple[str, ...] = TASKS) -> Workload:
    metrics = {name: AbsoluteRelativeError() if name == "depth" else Error() for name in tasks}
    return Workload(
        name="tiny",
        model=model or m3vit(),
        example_input=torch.zeros(1, 3, SIZE, SIZE),
        tasks=tuple(Task(name, F.l1_loss, metric, "lower") for name, metric in metrics.items()),
        train=batches(4, 1),
        calibration=batches(3, 2),
        test=batches(3, 3),
        factory=m3vit,
    )
