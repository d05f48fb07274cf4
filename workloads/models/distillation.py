"""Initial predictions of all tasks, and what the tasks' features tell one another: the parts of PAD-Net and MTI-Net."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.workloads.models.blocks import BasicBlock, TaskOutputs

Features = dict[str, Tensor]
"""Task → [N, C, H, W]."""


class InitialPredictions(nn.Module):
    """Features of each task, and a prediction from them, which training supervises."""

    def __init__(self, tasks: TaskOutputs, inputs: int, width: int) -> None:
        super().__init__()
        self.refine = nn.ModuleDict(
            {task: nn.Sequential(BasicBlock(inputs, width), BasicBlock(width, width)) for task in tasks}
        )
        self.predict = nn.ModuleDict({task: nn.Conv2d(width, outputs, 1) for task, outputs in tasks.items()})

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> tuple[Features, Features]:
        """What all tasks share, or each task's own input → (features, predictions) of each task."""
        features = {task: refine(x if isinstance(x, Tensor) else x[task]) for task, refine in self.refine.items()}
        return features, {task: predict(features[task]) for task, predict in self.predict.items()}


class Message(nn.Module):
    """What one task tells another, gated at each place by the speaker's features, as in MTI-Net's code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.content = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.content(x) * torch.sigmoid(self.gate(x))
        return result


class Distillation(nn.Module):
    """Each task's features plus the messages of all the others (Xu et al., CVPR 2018, module C).

    Args:
        tasks: those that listen.
        speakers: those that tell: the tasks, and perhaps more.
    """

    def __init__(self, tasks: TaskOutputs, width: int, speakers: TaskOutputs | None = None) -> None:
        super().__init__()
        self.messages = nn.ModuleDict(
            {to: nn.ModuleDict({task: Message(width) for task in speakers or tasks if task != to}) for to in tasks}
        )

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        told: Features = {}
        for to, senders in self.messages.items():
            assert isinstance(senders, nn.ModuleDict)
            told[to] = features[to] + torch.stack([say(features[task]) for task, say in senders.items()]).sum(dim=0)
        return told
