"""The workload `scenes-moe`: tasks and pictures of `scenes`, a small M³ViT whose experts specialise by task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.task import Workload
from secateur.workloads.checkpoint import load
from secateur.workloads.models.m3vit import M3ViT
from secateur.workloads.scene_geometry import CLASSES
from secateur.workloads.scene_images import SIZE
from secateur.workloads.scene_pictures import render
from secateur.workloads.scenes import loader, tasks
from secateur.workloads.training import Recipe

NAME = "scenes-moe"


class ScenesMoE(M3ViT):
    """M³ViT whose maps are in the units of the scenes' tasks: depth in metres, normals of unit length."""

    def __init__(self) -> None:
        super().__init__(
            size=(SIZE, SIZE), outputs={"segmentation": len(CLASSES), "depth": 1, "normals": 3, "edges": 1},
            width=80, depth=6, heads=5, patch=8, experts=16, top_k=2, channels=32,
        )  # fmt: skip

    def forward(self, x: Tensor, task: str | None = None) -> Tensor | dict[str, Tensor]:
        found = super().forward(2 * x - 1, task)
        if task is not None:
            return to_units(task, found)
        return {name: to_units(name, value) for name, value in found.items()}


def to_units(task: str, value: Tensor) -> Tensor:
    """Scenes are about four metres deep."""
    if task == "depth":
        return 4 * torch.exp(value)
    return F.normalize(value, dim=1) if task == "normals" else value


def network() -> ScenesMoE:
    """A fresh, untrained instance."""
    return ScenesMoE()


def workload() -> Workload:
    """The workload as shipped, with trained weights."""
    return recipe().workload(load(network(), NAME), (3, SIZE, SIZE), render)


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe(NAME, network, tasks(), loader, epochs=16, rate=2e-3, weight_decay=0.05, extra=router_loss)


def router_loss(output: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Balance as published, weight 0.01, and the tasks' sharing of experts."""
    return 0.01 * output["balance"] + 0.02 * output["sharing"]
