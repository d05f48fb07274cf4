"""The embedded workload `scenes`: four dense tasks on procedural pictures of simple rooms, with a trained CNN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.task import Task, Workload
from secateur.workloads.checkpoint import load
from secateur.workloads.loader import Batch, Loader
from secateur.workloads.metrics import (
    AbsoluteRelativeError,
    AngularError,
    EdgeF1,
    MeanIoU,
    cosine_loss,
    edge_loss,
    log_depth_loss,
)
from secateur.workloads.models.scenes_cnn import ScenesCNN
from secateur.workloads.scene_geometry import CLASSES
from secateur.workloads.scene_images import SIZE
from secateur.workloads.scene_pictures import render
from secateur.workloads.scene_splits import SPLITS, split
from secateur.workloads.training import Recipe

BATCH = 32


def network() -> ScenesCNN:
    """A fresh, untrained instance."""
    return ScenesCNN(len(CLASSES))


def workload() -> Workload:
    """The workload as shipped, with trained weights."""
    return recipe().workload(load(network(), "scenes"), (3, SIZE, SIZE), render)


def tasks() -> tuple[Task, ...]:
    return (
        Task("segmentation", F.cross_entropy, MeanIoU(len(CLASSES)), "higher", 1.0),
        Task("depth", log_depth_loss, AbsoluteRelativeError(), "lower", 2.0),
        Task("normals", cosine_loss, AngularError(), "lower", 2.0),
        Task("edges", edge_loss, EdgeF1(), "higher", 1.0),
    )


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe("scenes", network, tasks(), loader, epochs=16, extra=auxiliary_loss)


def auxiliary_loss(output: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Segmentation from the coarsest features, at every eighth pixel."""
    return 0.4 * F.cross_entropy(output["aux"], targets["segmentation"][:, 4::8, 4::8])


def loader(name: str) -> Loader:
    """The train (shuffled, randomly mirrored), calibration or test split; read or rendered when first needed."""

    def source() -> Batch:
        tensors = split(name)
        return tensors.pop("image"), tensors

    training = name == "train"
    return Loader(
        source,
        len(SPLITS[name]),
        batch_size=BATCH,
        prepare=prepare_mirrored if training else prepare,
        shuffle=training,
    )


def prepare(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """Stored integers and halves → what the network and the losses take."""
    return inputs.float() / 255, {
        "segmentation": targets["segmentation"].long(),
        "depth": targets["depth"].float(),
        "normals": targets["normals"].float(),
        "edges": targets["edges"].float(),
    }


def prepare_mirrored(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """As `prepare`, with half of the samples mirrored."""
    inputs, targets = prepare(inputs, targets)
    mirrored, mirrored_targets = mirror(inputs, targets)
    chosen = torch.rand(len(inputs)) < 0.5
    return _choose(chosen, mirrored, inputs), {
        name: _choose(chosen, mirrored_targets[name], target) for name, target in targets.items()
    }


def mirror(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """Left and right swapped; normals then point the other way along x."""
    flipped = {name: target.flip(-1) for name, target in targets.items()}
    flipped["normals"] = flipped["normals"] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    return inputs.flip(-1), flipped


def _choose(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (yes.ndim - 1)), yes, no)
