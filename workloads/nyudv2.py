"""The workload `nyudv2`: segmentation, depth, normals and edges of indoor pictures, with MTI-Net on HRNet-18.

Silberman et al., Indoor segmentation and support inference (ECCV 2012), as MTI-Net's authors publish it. Below
$SECATEUR_DATA/NYUD_MT:

    gt_sets/train.txt, val.txt          names, one a line
    images/NAME.jpg                     480 × 640
    segmentation/NAME.png               class 1 to 40, 0 where unknown
    depth/NAME.npy                      metres, 0 where unknown
    normals/NAME.npy                    [H, W, 3] unit vectors, zero where unknown
    edge/NAME.npy                       0 and 1

Pictures are cut to 448 × 576: anywhere and mirrored in training, in the middle otherwise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from secateur.core.task import Task, Workload
from secateur.workloads import dense, folders
from secateur.workloads.folders import Sample, Samples
from secateur.workloads.models.hrnet import hrnet18
from secateur.workloads.models.mti_net import MTINet
from secateur.workloads.raycast import Array
from secateur.workloads.scene_pictures import render
from secateur.workloads.training import Recipe

CLASSES = 40
SIZE = (448, 576)
OUTPUTS = {"segmentation": CLASSES, "depth": 1, "normals": 3, "edges": 1}
FILES = {
    "image": ("images", ".jpg"),
    "segmentation": ("segmentation", ".png"),
    "depth": ("depth", ".npy"),
    "normals": ("normals", ".npy"),
    "edges": ("edge", ".npy"),
}
BATCH = 8


def workload() -> Workload:
    """The workload on the user's folder, with weights from its `weights/` if there are any.

    Raises:
        WorkloadError: no folder. DataError: a file is missing or damaged.
    """
    model = folders.trained(network(), "nyudv2", data_folder())
    return recipe().workload(model, (3, *SIZE), render)


def network() -> MTINet:
    """A fresh, untrained instance."""
    return MTINet(OUTPUTS, hrnet18())


def tasks() -> tuple[Task, ...]:
    """Losses, weights and metrics of MTI-Net's published recipe."""
    return (
        Task("segmentation", dense.segmentation_loss, dense.SegmentationIoU(CLASSES), "higher", 1.0),
        Task("depth", dense.depth_loss, dense.DepthRMSE(), "lower", 1.0),
        Task("normals", dense.normals_loss, dense.MeanAngle(), "lower", 10.0),
        Task("edges", dense.edge_loss(0.95), dense.OptimalEdgeF(), "higher", 50.0),
    )


def recipe() -> Recipe:
    """How weights are trained (for a machine with a GPU's strength)."""
    return Recipe(
        "nyudv2", network, tasks(), loader, epochs=80, rate=1e-4, weight_decay=1e-4,
        extra=dense.deep_supervision(tasks(), "deep_supervision"),
    )  # fmt: skip


def data_folder() -> Path:
    return folders.data_folder("nyudv2", "NYUD_MT", "images/, segmentation/, depth/, normals/, edge/ and gt_sets/")


def loader(name: str, folder: Path | None = None) -> Samples:
    """The published train split without its last tenth, which is for calibration, or the published val split."""
    folder = folder or data_folder()
    names = folders.split(name, *(folder / "gt_sets" / f"{listed}.txt" for listed in ("train", "val")))
    for sample in names:
        for path in _paths(folder, sample).values():
            folders.expected(path)
    training = name == "train"
    return Samples(names, partial(read, folder, training=training), batch_size=BATCH, shuffle=training)


def _paths(folder: Path, sample: str) -> dict[str, Path]:
    return {kind: folder / below / f"{sample}{suffix}" for kind, (below, suffix) in FILES.items()}


def read(folder: Path, sample: str, training: bool = False) -> Sample:
    """One picture and its labels."""
    raw = {kind: _array(path) for kind, path in _paths(folder, sample).items()}
    raw["segmentation"] = np.where(raw["segmentation"] == 0, dense.IGNORE, raw["segmentation"].astype(np.int64) - 1)
    raw["normals"] = raw["normals"].astype(np.float32)
    height, width = (max(0, have - want) for have, want in zip(raw["image"].shape, SIZE, strict=False))
    corner = (height // 2, width // 2)
    if training:
        corner = (int(torch.randint(height + 1, ())), int(torch.randint(width + 1, ())))
    fill = {"segmentation": dense.IGNORE, "edges": dense.IGNORE}
    cut = {kind: folders.fitted(array, SIZE, fill.get(kind, 0), corner) for kind, array in raw.items()}
    return mirrored(cut) if training and bool(torch.rand(()) < 0.5) else tensors(cut)


def _array(path: Path) -> Array:
    if path.suffix == ".npy":
        return folders.numbers(path)
    return folders.picture(path, "RGB" if path.suffix == ".jpg" else "L")


def tensors(arrays: dict[str, Array]) -> Sample:
    """Arrays [H, W, ...] of an image and of each task → what the network and the losses take."""
    targets = {kind: folders.tensor(array) for kind, array in arrays.items() if kind != "image"}
    for kind in targets.keys() & {"segmentation", "parts"}:
        targets[kind] = targets[kind][0].long()
    return folders.tensor(arrays["image"]) / 255, targets


def mirrored(arrays: dict[str, Array]) -> Sample:
    """As `tensors`, left and right swapped; normals then point the other way along x."""
    flipped = {kind: array[:, ::-1].copy() for kind, array in arrays.items()}
    flipped["normals"][..., 0] *= -1
    return tensors(flipped)
