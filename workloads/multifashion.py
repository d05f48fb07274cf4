"""The workload `multifashion`: two real Fashion-MNIST pictures overlaid at opposite corners of a 36×36 canvas.

As the MultiFashion benchmark of Lin et al., Pareto multi-task learning (NeurIPS 2019). The pictures (Xiao et al., 2017,
MIT licence) are read from idx files, as Debian's package `dataset-fashion-mnist` installs them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from torch import Tensor

from secateur.core.errors import DataError, WorkloadError
from secateur.core.task import Workload
from secateur.workloads import pairs
from secateur.workloads.checkpoint import load
from secateur.workloads.idx import read_idx
from secateur.workloads.loader import Batch, Loader
from secateur.workloads.models.pair_cnn import PairCNN
from secateur.workloads.training import Recipe

CANVAS = 36
SIZE = 28
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SPLITS = {
    "train": ("train", 0, 50_000, 20_000),
    "calibration": ("train", 50_000, 60_000, 1024),
    "test": ("t10k", 0, 10_000, 2048),
}
"""File, first and last picture, number of pairs: no picture is in two splits."""
render = partial(pairs.render, classes=dict(enumerate(CLASSES)))


def workload() -> Workload:
    """The workload as shipped, with trained weights.

    Raises:
        WorkloadError: the four files are not found.
    """
    return recipe().workload(load(network(), "multifashion"), (1, CANVAS, CANVAS), render)


def network() -> PairCNN:
    """A fresh, untrained instance."""
    return PairCNN(CANVAS, widths=(16, 32, 64, 96), branch=32, hidden=96, dropout=0.4)


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe("multifashion", network, pairs.tasks(), loader, epochs=6)


def loader(name: str, folder: Path | None = None) -> Loader:
    """Pairs of one split's pictures; the files are read when first needed."""
    (_, _, _, count), found = SPLITS[name], folder or data_folder()

    def source() -> Batch:
        images, labels = pictures(name, found)
        return pairs.overlay(images, labels, count, CANVAS, seed=list(SPLITS).index(name))

    return Loader(source, count, batch_size=64, prepare=pairs.prepare, shuffle=name == "train")


def pictures(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    """The pictures of a split: uint8 [M, 28, 28] and classes [M].

    Raises:
        DataError: a file is missing, damaged, or does not hold what Fashion-MNIST holds.
    """
    file, first, last, _ = SPLITS[name]
    images = read_idx(_file(folder, f"{file}-images-idx3-ubyte"), 3)
    labels = read_idx(_file(folder, f"{file}-labels-idx1-ubyte"), 1)
    if images.shape[1:] != (SIZE, SIZE) or len(images) != len(labels) or len(images) < last:
        raise DataError(
            f"{folder}: {list(images.shape)} {file} images and {len(labels)} labels are not Fashion-MNIST",
            f"at least {last} images of {SIZE} x {SIZE}, and as many labels, are expected",
        )
    if int(labels.max()) >= len(CLASSES):
        raise DataError(f"{folder}: a {file} label is {int(labels.max())}", "labels are 0 to 9")
    return images[first:last], labels[first:last]


def data_folder() -> Path:
    """Where the files are: $SECATEUR_DATA/fashion-mnist, else where Debian puts them.

    Raises:
        WorkloadError: in neither place.
    """
    user = os.environ.get("SECATEUR_DATA")
    folder = Path(user) / "fashion-mnist" if user else DEBIAN
    if not folder.is_dir() and DEBIAN.is_dir():
        return DEBIAN
    if not folder.is_dir():
        raise WorkloadError(
            f"multifashion needs the Fashion-MNIST files, and {folder} does not exist",
            "apt install dataset-fashion-mnist, or put the four *-ubyte.gz files in $SECATEUR_DATA/fashion-mnist",
        )
    return folder


def _file(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder} has no {name}.gz", "all four Fashion-MNIST files belong in that folder")
