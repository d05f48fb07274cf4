"""Models with several outputs: heads, auxiliary heads, dropped branches, trunks that mix, tasks as an argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.registry import Example, conv, conv_bn, image, register


class Head(nn.Sequential):
    """A hidden layer and a prediction of so many channels."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(conv_bn(inputs, hidden), conv(hidden, outputs, 1))


class TwoHeads(nn.Module):
    """One encoder, one head per task."""

    tasks = ("segmentation", "depth")

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, stride=2))
        self.segmentation = Head(12, 8, 5)
        self.depth = Head(12, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.encoder(x)
        return {"segmentation": self.segmentation(x), "depth": self.depth(x)}


@register
def two_heads() -> Example:
    return TwoHeads(), image()


class NestedOutput(TwoHeads):
    """Predictions below a key, next to extra outputs that are no task's."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.encoder(x)
        final = {"segmentation": self.segmentation(features), "depth": self.depth(features)}
        return {"final": final, "features": [features, features.mean((2, 3))]}


@register
def nested_output() -> Example:
    return NestedOutput(), image()


class AuxiliaryHead(TwoHeads):
    """A third head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = Head(12, 4, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.encoder(x)
        output = {"segmentation": self.segmentation(features), "depth": self.depth(features)}
        if self.training:
            output["auxiliary"] = self.auxiliary(features)
        return output


@register
def auxiliary_head() -> Example:
    return AuxiliaryHead(), image()


class DeadBranch(TwoHeads):
    """A branch that is computed in evaluation mode too, and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = nn.ModuleDict({"edges": Head(12, 4, 1), "normals": Head(12, 4, 3)})

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.encoder(x)
        extra = {name: head(features) for name, head in self.dropped.items()}
        output = {**extra, "segmentation": self.segmentation(features), "depth": self.depth(features)}
        return {name: output[name] for name in self.tasks}


@register
def dead_branch() -> Example:
    return DeadBranch(), image()


class TaskArgument(TwoHeads):
    """Called one task at a time: `forward(x, task)`."""

    def forward(self, x: Tensor, task: str) -> Tensor:  # type: ignore[override]
        return self.get_submodule(task)(self.encoder(x))


@register
def task_argument() -> Example:
    return TaskArgument(), image()


class ParallelTrunks(nn.Module):
    """One trunk per task; after each stage, learned scalars mix their features (Misra et al. 2016, cross-stitch)."""

    tasks = ("segmentation", "depth")

    def __init__(self) -> None:
        super().__init__()
        self.trunks = nn.ModuleDict({task: nn.ModuleList([conv_bn(3, 8), conv_bn(8, 12)]) for task in self.tasks})
        self.stitches = nn.ParameterList(torch.tensor([[0.9, 0.1], [0.2, 0.8]]) for _ in range(2))
        self.heads = nn.ModuleDict({"segmentation": conv(12, 5), "depth": conv(12, 1)})

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = dict.fromkeys(self.tasks, x)
        for stage, stitch in enumerate(self.stitches):
            own = [self.trunks[task][stage](features[task]) for task in self.tasks]
            features = {task: sum(stitch[i, j] * own[j] for j in range(2)) for i, task in enumerate(self.tasks)}
        return {task: self.heads[task](features[task]) for task in self.tasks}


@register
def parallel_trunks() -> Example:
    return ParallelTrunks(), image()


class TaskGuided(TwoHeads):
    """One task's prediction is an input of the other's head (as in PAD-Net, Xu et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = Head(12 + 5, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.encoder(x)
        segmentation = self.segmentation(features)
        depth = self.depth(torch.cat([features, segmentation.softmax(1)], 1))
        return {"segmentation": segmentation, "depth": depth}


@register
def task_guided() -> Example:
    return TaskGuided(), image()
