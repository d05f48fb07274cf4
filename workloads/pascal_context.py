"""The workload `pascal_context`: segmentation, human parts, saliency, normals and edges, with MTI-Net on HRNet-18.

Chen et al., Detect what you can (CVPR 2014), with distilled saliency and normals, as Maninis et al. (ASTMT, CVPR 2019)
publish it. Below $SECATEUR_DATA/PASCAL_MT:

    ImageSets/Context/train.txt, val.txt                names, one a line
    JPEGImages/NAME.jpg
    semseg/VOC12/NAME.png or semseg/pascal-context/NAME.png     class 0 to 20, 255 where unknown
    human_parts/NAME.mat                                PASCAL-Part's `anno`
    pascal-context/trainval/NAME.mat                    `LabelMap`, of whose classes edges are the borders
    normals_distill/NAME.png, sal_distill/NAME.png
    db_info/context_classes.json, nyu_classes.json      of ASTMT's code: normals count where a class occurs in both

Pictures are filled to 512 × 512 (nothing counts there), and mirrored in training. Edges differ from the published ones,
which are thinned: here they are the pixels whose right or lower neighbour is of another class.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.core.errors import DataError
from secateur.core.task import Task, Workload
from secateur.workloads import dense, folders
from secateur.workloads.folders import Sample, Samples
from secateur.workloads.models.hrnet import hrnet18
from secateur.workloads.models.mti_net import MTINet
from secateur.workloads.nyudv2 import mirrored, tensors
from secateur.workloads.raycast import Array
from secateur.workloads.training import Recipe

SIZE = (512, 512)
OUTPUTS = {"segmentation": 21, "parts": 7, "saliency": 1, "normals": 3, "edges": 1}
PERSON = 15
_PARTS = (
    "hair head lear rear lebrow rebrow leye reye mouth nose",  # 1: head
    "neck torso",
    "luarm ruarm",
    "llarm rlarm lhand rhand",
    "luleg ruleg",
    "llleg rlleg lfoot rfoot",
)
PART = {name: number for number, names in enumerate(_PARTS, start=1) for name in names.split()}
"""PASCAL-Part's names of a person's parts → head, torso, upper and lower arms, upper and lower legs."""
BATCH = 8


def workload() -> Workload:
    """The workload on the user's folder, with weights from its `weights/` if there are any.

    Raises:
        WorkloadError: no folder. DataError: a file is missing or damaged.
    """
    model = folders.trained(network(), "pascal_context", data_folder())
    return recipe().workload(model, (3, *SIZE))


def network() -> MTINet:
    """A fresh, untrained instance."""
    return MTINet(OUTPUTS, hrnet18())


def tasks() -> tuple[Task, ...]:
    """Losses, weights and metrics of MTI-Net's published recipe."""
    return (
        Task("segmentation", dense.segmentation_loss, dense.SegmentationIoU(21), "higher", 1.0),
        Task("parts", dense.segmentation_loss, dense.SegmentationIoU(7), "higher", 2.0),
        Task("saliency", dense.saliency_loss, dense.MaxF(), "higher", 5.0),
        Task("normals", dense.normals_loss, dense.MeanAngle(), "lower", 10.0),
        Task("edges", dense.edge_loss(0.95), dense.OptimalEdgeF(), "higher", 50.0),
    )


def recipe() -> Recipe:
    """How weights are trained (for a machine with a GPU's strength)."""
    return Recipe(
        "pascal_context", network, tasks(), loader, epochs=60, rate=1e-4, weight_decay=1e-4,
        extra=dense.deep_supervision(tasks(), "deep_supervision"),
    )  # fmt: skip


def data_folder() -> Path:
    return folders.data_folder("pascal_context", "PASCAL_MT", "JPEGImages/, semseg/, human_parts/ and the rest")


def loader(name: str, folder: Path | None = None) -> Samples:
    """The published train split without its last tenth, which is for calibration, or the published val split."""
    folder = folder or data_folder()
    names = folders.split(name, *(folder / "ImageSets" / "Context" / f"{listed}.txt" for listed in ("train", "val")))
    known_classes(folder)
    for sample in names:
        for path in _paths(folder, sample).values():
            folders.expected(path)
    training = name == "train"
    return Samples(names, partial(read, folder, training=training), batch_size=BATCH, shuffle=training)


def _paths(folder: Path, sample: str) -> dict[str, Path]:
    semseg = folder / "semseg"
    voc = semseg / "VOC12" / f"{sample}.png"
    return {
        "image": folder / "JPEGImages" / f"{sample}.jpg",
        "segmentation": voc if voc.is_file() else semseg / "pascal-context" / f"{sample}.png",
        "parts": folder / "human_parts" / f"{sample}.mat",
        "context": folder / "pascal-context" / "trainval" / f"{sample}.mat",
        "normals": folder / "normals_distill" / f"{sample}.png",
        "saliency": folder / "sal_distill" / f"{sample}.png",
    }


@cache
def known_classes(folder: Path) -> tuple[int, ...]:
    """Numbers of the classes whose normals count: those that NYUDv2, on which normals were learned, has too."""
    context, nyu = (
        json.loads(folders.expected(folder / "db_info" / f"{name}_classes.json").read_text(encoding="utf-8"))
        for name in ("context", "nyu")
    )
    return tuple(
        sorted({context[name] for name in context if (name in nyu and name != "unknown") or name == "tvmonitor"})
    )


def read(folder: Path, sample: str, training: bool = False) -> Sample:
    """One picture and its labels."""
    paths = _paths(folder, sample)
    image, context = folders.picture(paths["image"]), folders.matlab(paths["context"], "LabelMap")
    normals = 2 * folders.picture(paths["normals"]).astype(np.float32) / 255 - 1
    raw = {
        "image": image,
        "segmentation": folders.picture(paths["segmentation"], "P"),
        "parts": human_parts(folders.matlab(paths["parts"], "anno"), image.shape[:2]),
        "saliency": (folders.picture(paths["saliency"], "L") > 127).astype(np.float32),
        "normals": normals * np.isin(context, known_classes(folder))[..., None],
        "edges": borders(context),
    }
    for kind, array in raw.items():
        if array.shape[:2] != image.shape[:2]:
            raise DataError(f"{kind} of {sample} is {array.shape[:2]}, the picture {image.shape[:2]}", "get it again")
    fill = {"image": 0, "normals": 0}
    cut = {kind: folders.fitted(array, SIZE, fill.get(kind, dense.IGNORE)) for kind, array in raw.items()}
    return mirrored(cut) if training and bool(torch.rand(()) < 0.5) else tensors(cut)


def human_parts(annotation: Any, size: tuple[int, ...]) -> Array:
    """PASCAL-Part's annotation → [H, W] number of the part of a person, 0 for the background."""
    drawn = np.zeros(size, np.uint8)
    for thing in _several(annotation["objects"]):
        if int(thing["class_ind"]) == PERSON:
            for part in _several(thing["parts"]):
                drawn[np.asarray(part["mask"], dtype=bool)] = PART[str(part["part_name"])]
    return drawn


def _several(value: Any) -> list[Any]:
    """A MATLAB struct array: none, one or several."""
    return [value] if isinstance(value, dict) else list(value)


def borders(classes: Array) -> Array:
    """1 at pixels whose right or lower neighbour is of another class."""
    edges = np.zeros(classes.shape, np.float32)
    edges[:, :-1] = classes[:, 1:] != classes[:, :-1]
    edges[:-1] = np.maximum(edges[:-1], classes[1:] != classes[:-1])
    return edges
