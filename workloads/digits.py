"""The workload `digits`: two real handwritten 8×8 digits (bundled with scikit-learn) overlaid on a 10×10 canvas.

Alpaydin and Kaynak's optical recognition of handwritten digits (UCI), 1,797 pictures; no download.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from secateur.core.task import Workload
from secateur.workloads import pairs
from secateur.workloads.checkpoint import load
from secateur.workloads.loader import Batch, Loader
from secateur.workloads.models.pair_cnn import PairCNN
from secateur.workloads.training import Recipe

CANVAS = 10
SPLITS = {"train": (0, 1100, 6000), "calibration": (1100, 1400, 512), "test": (1400, 1797, 1024)}
"""First and last digit, in a fixed shuffled order, and number of pairs: no digit is in two splits."""


def workload() -> Workload:
    """The workload as shipped, with trained weights."""
    render = partial(pairs.render, classes={digit: str(digit) for digit in range(10)})
    return recipe().workload(load(network(), "digits"), (1, CANVAS, CANVAS), render)


def network() -> PairCNN:
    """A fresh, untrained instance."""
    return PairCNN(CANVAS, widths=(24, 32, 48), branch=32, hidden=64, dropout=0.3)


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe("digits", network, pairs.tasks(), loader, epochs=8)


def loader(name: str) -> Loader:
    """Pairs of one split's digits."""
    _, _, count = SPLITS[name]

    def source() -> Batch:
        images, labels = digits(name)
        return pairs.overlay(images, labels, count, CANVAS, seed=list(SPLITS).index(name))

    return Loader(source, count, batch_size=64, prepare=pairs.prepare, shuffle=name == "train")


def digits(name: str) -> tuple[Tensor, Tensor]:
    """The digits of a split: uint8 [M, 8, 8] and classes [M]."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    order = torch.randperm(len(bundled.target), generator=torch.Generator().manual_seed(0))
    first, last, _ = SPLITS[name]
    chosen = order[first:last]
    images = (torch.from_numpy(bundled.images) * (255 / 16)).round().to(torch.uint8)  # stored as 0..16
    return images[chosen], torch.from_numpy(bundled.target)[chosen]
