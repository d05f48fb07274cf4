"""The workload `detection`: box, objectness and class on data in COCO's layout, with a YOLOv5-like detector.

Lin et al., Microsoft COCO (ECCV 2014). Below $SECATEUR_DATA/coco:

    annotations/instances_train2017.json, instances_val2017.json
    train2017/NAME.jpg, val2017/NAME.jpg

Pictures are shrunk or enlarged to fit 640 × 640 and filled with grey at the bottom and the right. Crowds are left out,
in training and in judging (COCO's own evaluation ignores what is found inside them).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.core.errors import DataError
from secateur.core.task import Task, Workload
from secateur.workloads import folders
from secateur.workloads.average_precision import MeanAveragePrecision
from secateur.workloads.detection_losses import AssignedIoU, box_loss, class_loss, objectness_loss
from secateur.workloads.detection_pictures import Renderer
from secateur.workloads.folders import Sample, Samples
from secateur.workloads.models.yolo import YOLO, AnchorGrid
from secateur.workloads.training import Recipe

SIZE = 640
SLOTS = 100
"""Objects of a picture that are kept, the largest first."""
CLASSES = 80
GREY = 114
GRID = AnchorGrid(
    SIZE,
    strides=(8, 16, 32),
    anchors=(
        ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
        ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
        ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
    ),
)
"""YOLOv5's anchors for COCO."""
TASKS = ("box", "objectness", "class")
BATCH = 16
Entry = tuple[Path, torch.Tensor]


def workload() -> Workload:
    """The workload on the user's folder, with weights from its `weights/` if there are any.

    Raises:
        WorkloadError: no folder. DataError: a file is missing or damaged.
    """
    folder = data_folder()
    names, test = entries(folder, "val")
    return Workload(
        name="detection",
        model=folders.trained(network(), "detection", folder),
        example_input=torch.zeros(1, 3, SIZE, SIZE),
        tasks=tasks(),
        train=loader("train", folder),
        calibration=loader("calibration", folder),
        test=_samples(test, False),
        factory=network,
        reference="detection",
        render=Renderer(names),
    )


def network() -> YOLO:
    """A fresh, untrained instance, of about YOLOv5s's size."""
    return YOLO(CLASSES, GRID, (32, 64, 128, 256, 512))


def tasks() -> tuple[Task, ...]:
    return (
        Task("box", box_loss(GRID), AssignedIoU(GRID), "higher", 1.0),
        Task("objectness", objectness_loss(GRID), MeanAveragePrecision((0.5,)), "higher", 8.0),
        Task("class", class_loss(GRID), MeanAveragePrecision(), "higher", 8.0),
    )


def recipe() -> Recipe:
    """How weights are trained (for a machine with a GPU's strength)."""
    return Recipe("detection", network, tasks(), loader, epochs=100, rate=1e-3)


def data_folder() -> Path:
    return folders.data_folder("detection", "coco", "annotations/, train2017/ and val2017/")


def loader(name: str, folder: Path | None = None) -> Samples:
    """The train split without its last tenth, which is for calibration, or the val split."""
    folder = folder or data_folder()
    if name == "test":
        return _samples(entries(folder, "val")[1], False)
    train, calibration = folders.hold_out(entries(folder, "train")[1])
    return _samples(train if name == "train" else calibration, name == "train")


def _samples(found: list[Entry], training: bool) -> Samples:
    return Samples(found, partial(read, training=training), batch_size=BATCH, shuffle=training)


def entries(folder: Path, split: str) -> tuple[list[str], list[Entry]]:
    """Names of the classes, in the order of their numbers in the file; (picture, objects [SLOTS, 5]) of a split.

    Raises:
        DataError: a file is missing, or the annotations are not COCO's.
    """
    path = folders.expected(folder / "annotations" / f"instances_{split}2017.json")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(document["categories"], key=lambda category: category["id"])
        numbers = {category["id"]: number for number, category in enumerate(categories)}
        rows: dict[int, list[tuple[float, ...]]] = {image["id"]: [] for image in document["images"]}
        for annotation in document["annotations"]:
            if not annotation.get("iscrowd", 0):
                rows[annotation["image_id"]].append((numbers[annotation["category_id"]], *annotation["bbox"]))
        found = [_entry(folder / f"{split}2017", image, rows[image["id"]]) for image in document["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no COCO annotation: {type(error).__name__}: {error}", "get the file again"
        ) from error
    if len(categories) > CLASSES or len(found) < 2:
        raise DataError(f"{path} has {len(categories)} classes, {len(found)} pictures", "at most 80, at least 2")
    return [category["name"] for category in categories], found


def _entry(folder: Path, image: dict[str, Any], rows: list[tuple[float, ...]]) -> Entry:
    """Boxes (left, top, width, height in pixels) → class, centre and size in 0..1 of the filled square."""
    side = max(image["width"], image["height"])
    objects = torch.full((SLOTS, 5), -1.0)
    largest = sorted((row for row in rows if min(row[3:]) > 0), key=lambda row: -row[3] * row[4])[:SLOTS]
    for slot, (kind, left, top, width, height) in enumerate(largest):
        box = (left + width / 2) / side, (top + height / 2) / side, width / side, height / side
        objects[slot] = torch.tensor([kind, *box])
    return folders.expected(folder / image["file_name"]), objects


def read(entry: Entry, training: bool = False) -> Sample:
    """One picture, fitted into the square, and its objects for each task."""
    from PIL import Image

    path, objects = entry
    image = Image.fromarray(folders.picture(path))
    scale = SIZE / max(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    filled = folders.fitted(np.asarray(resized), (SIZE, SIZE), GREY)
    if training and bool(torch.rand(()) < 0.5):
        filled = filled[:, ::-1]
        mirrored = torch.where(objects[:, :1] >= 0, 1 - objects[:, 1:2], objects[:, 1:2])
        objects = torch.cat([objects[:, :1], mirrored, objects[:, 2:]], dim=1)
    return folders.tensor(filled) / 255, dict.fromkeys(TASKS, objects)
