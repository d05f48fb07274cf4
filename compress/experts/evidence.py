"""What an extraction shows for itself: that it computes the same, and how much tasks share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.experts.usage import Table
from secateur.core.inputs import batch_size
from secateur.core.predict import evaluating, predict
from secateur.core.task import Workload


def largest_difference(one: nn.Module, other: nn.Module, workload: Workload) -> dict[str, float]:
    """{"max_abs": largest difference of two models' predictions on the calibration data, "samples", "identical"}."""
    largest, samples, identical = 0.0, 0, True
    with evaluating(one), evaluating(other):
        for inputs, _ in workload.calibration:
            pairs = zip(
                pytree.tree_leaves(predict(one, inputs, workload.tasks)),
                pytree.tree_leaves(predict(other, inputs, workload.tasks)),
                strict=True,
            )
            for a, b in pairs:
                if isinstance(a, Tensor):
                    identical &= torch.equal(a, b)
                    largest = max(largest, float((a - b).abs().max()))
            samples += batch_size(inputs)
    return {"max_abs": largest, "samples": samples, "identical": float(identical)}


def overlaps(table: Table) -> dict[str, Any]:
    """Layer → task → task → Jaccard index of the experts that they use."""
    paths = next(iter(table.tasks.values()), {})
    return {path: table.overlap(path) for path in paths}
