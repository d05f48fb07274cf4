"""Calibration data as the oracle wants it: many small chunks, so that a clear case is decided on a few of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.core.errors import DataError
from secateur.core.inputs import batch_size, mapped
from secateur.core.task import Batch


def calibration_batches(batches: Iterable[Batch], samples: int | None) -> list[Batch]:
    """Batches of one size, as many as are asked for, inputs in plain containers; a smaller last batch is dropped."""
    kept: list[Batch] = []
    count = 0
    for batch in batches:
        size = batch_size(batch[0])
        if kept and size != batch_size(kept[0][0]):
            continue
        kept.append((mapped(lambda each: each, batch[0]), batch[1]))
        count += size
        if samples is not None and count >= samples:
            break
    if not kept:
        raise DataError("the calibration loader yields nothing", "give it at least one batch")
    return kept


def chunked(batches: Sequence[Batch], parts: int) -> list[Batch]:
    """The samples of equal batches in so many equal chunks (of two samples at least), drawn across all batches in one
    fixed random order, so that any few chunks stand for the whole.

    Batches whose values are not all tensors with the sample as first dimension (lists of boxes, say), or of other
    shapes from batch to batch (boxes filled up to the most of each), stay as they are.
    """
    leaves = [pytree.tree_flatten(batch) for batch in batches]
    structures = {str(structure) for _, structure in leaves}
    length = batch_size(batches[0][0])
    if len(structures) > 1 or not all(_per_sample(leaf, length) for row, _ in leaves for leaf in row):
        return list(batches)
    if any(len({leaf.shape for leaf in column}) > 1 for column in zip(*(row for row, _ in leaves), strict=True)):
        return list(batches)
    joined = [torch.cat(column) for column in zip(*(row for row, _ in leaves), strict=True)]
    total = length * len(batches)
    size = next(size for size in range(min(max(2, total // parts), total), 0, -1) if total % size == 0)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).reshape(-1, size)
    return [
        pytree.tree_unflatten([column[index.to(column.device)] for column in joined], leaves[0][1]) for index in order
    ]


def _per_sample(leaf: Any, length: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == length
