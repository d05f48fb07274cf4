"""The embedded workload `scenes-detect`: find the objects of the procedural scenes, with a trained YOLO-style detector.

Its three tasks are the three losses of such a detector: where an object is, that there is one, and which. What they
are judged by, in this order: the IoU of the predictions that answer for an object, the average precision at IoU 0.5 of
boxes without classes, and COCO's mAP of the whole detection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.predict import evaluate
from secateur.core.task import Task, Workload
from secateur.workloads.average_precision import COCO_IOUS, MeanAveragePrecision
from secateur.workloads.checkpoint import load
from secateur.workloads.detection_losses import AssignedIoU, box_loss, class_loss, objectness_loss
from secateur.workloads.detection_pictures import Renderer
from secateur.workloads.loader import Batch, Loader
from secateur.workloads.models.yolo import YOLO, AnchorGrid
from secateur.workloads.scene_boxes import CLASSES, SPLITS, split
from secateur.workloads.scene_images import SIZE
from secateur.workloads.training import Recipe

GRID = AnchorGrid(
    SIZE,
    strides=(4, 8, 16),
    anchors=(
        ((5.0, 10.0), (9.0, 7.0), (8.0, 14.0)),
        ((12.0, 10.0), (11.0, 18.0), (15.0, 14.0)),
        ((15.0, 25.0), (19.0, 19.0), (23.0, 29.0)),
    ),
)
"""Anchors: nine k-means clusters of the logarithms of the training boxes' sizes, rounded."""
WIDTHS = (16, 32, 64, 128)
TASKS = ("box", "objectness", "class")


def network() -> YOLO:
    """A fresh, untrained instance."""
    return YOLO(len(CLASSES), GRID, WIDTHS)


def workload() -> Workload:
    """The workload as shipped, with trained weights."""
    return recipe().workload(load(network(), "scenes-detect"), (3, SIZE, SIZE), Renderer(CLASSES))


def tasks() -> tuple[Task, ...]:
    return (
        Task("box", box_loss(GRID), AssignedIoU(GRID), "higher", 1.0),
        Task("objectness", objectness_loss(GRID), MeanAveragePrecision((0.5,)), "higher", 8.0),
        Task("class", class_loss(GRID), MeanAveragePrecision(), "higher", 1.0),
    )


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe("scenes-detect", network, tasks(), loader, epochs=32, rate=2e-3, figures=figures)


def figures(model: nn.Module) -> dict[str, float]:
    """The detector's usual figures on the test split: mAP at IoU 0.5, and the mean over IoU 0.5 to 0.95."""
    judged = {"mAP50": (0.5,), "mAP50-95": COCO_IOUS}
    return {
        name: evaluate(model, loader("test"), [Task("class", class_loss(GRID), MeanAveragePrecision(at), "higher")])[
            "class"
        ]
        for name, at in judged.items()
    }


def loader(name: str) -> Loader:
    """The train (shuffled, randomly mirrored), calibration or test split; read or rendered when first needed."""

    def source() -> Batch:
        tensors = split(name)
        return tensors["image"], dict.fromkeys(TASKS, tensors["boxes"])

    training = name == "train"
    return Loader(
        source,
        len(SPLITS[name]),
        batch_size=32,
        prepare=prepare_mirrored if training else prepare,
        shuffle=training,
    )


def prepare(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """Stored bytes → values in 0..1."""
    return inputs.float() / 255, targets


def prepare_mirrored(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """As `prepare`, with half of the samples mirrored."""
    inputs, targets = prepare(inputs, targets)
    chosen = torch.rand(len(inputs)) < 0.5
    boxes = mirror(targets["box"], chosen)
    return torch.where(chosen.view(-1, 1, 1, 1), inputs.flip(-1), inputs), dict.fromkeys(TASKS, boxes)


def mirror(boxes: Tensor, chosen: Tensor) -> Tensor:
    """Boxes [N, S, 5] as the mirrored picture shows them, for the samples that are chosen [N]."""
    mirrored = boxes.clone()
    mirrored[..., 1] = 1 - boxes[..., 1]
    return torch.where(chosen.view(-1, 1, 1), mirrored, boxes)
