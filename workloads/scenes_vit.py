"""The embedded workload `scenes-vit`: the tasks and pictures of `scenes`, with a trained vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.task import Workload
from secateur.workloads import scenes
from secateur.workloads.checkpoint import load
from secateur.workloads.loader import Batch, Loader
from secateur.workloads.models.scenes_vit import ScenesViT
from secateur.workloads.scene_geometry import CLASSES
from secateur.workloads.scene_images import SIZE
from secateur.workloads.scene_pictures import render
from secateur.workloads.training import Recipe


def network() -> ScenesViT:
    """A fresh, untrained instance."""
    return ScenesViT(len(CLASSES), SIZE)


def workload() -> Workload:
    """The workload as shipped, with trained weights."""
    return recipe().workload(load(network(), "scenes-vit"), (3, SIZE, SIZE), render)


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe("scenes-vit", network, scenes.tasks(), loader, epochs=16, rate=2e-3, weight_decay=0.05)


def loader(name: str) -> Loader:
    """The splits of `scenes`; for training, colours vary as well."""
    whole = scenes.loader(name)
    if name != "train":
        return whole
    return Loader(
        lambda: whole.stored, whole.samples, batch_size=whole.batch_size, prepare=prepare_recoloured, shuffle=True
    )


def prepare_recoloured(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """Mirrored as in `scenes`, and each sample's red, green and blue in a random order, brighter or darker: a
    transformer knows less about pictures beforehand and must be shown more of them. No label depends on colours."""
    inputs, targets = scenes.prepare_mirrored(inputs, targets)
    order = torch.rand(len(inputs), 3).argsort(dim=1)
    gain = torch.empty(len(inputs), 1, 1, 1).uniform_(0.8, 1.2)
    return (gain * inputs[torch.arange(len(inputs))[:, None], order]).clamp(0, 1), targets
