"""The exchange rate between a task's loss and its metric, which is what its user judges by.

A loss that doubles costs a depth task its whole metric (both are errors) and a segmentation task a few percent. Tasks
are therefore compared by the drop of their metrics: the loss that goes with a drop is seen on models whose least
salient channels are gone, the same share of every group.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.pagcp.saliency import Criterion, lowest, score
from secateur.compress.pagcp.sampling import Losses
from secateur.core.device import update
from secateur.core.predict import evaluating, predict, task_losses
from secateur.core.task import Batch, Task

SHARES = (0.1, 0.2, 0.3)
"""Of every group's channels that are taken out to see what it does."""
SEEN = 1e-3
"""Relative drop of a metric below which it is noise."""


def loss_per_drop(
    groups: ChannelGroups,
    batches: Sequence[Batch],
    tasks: Sequence[Task],
    criterion: Criterion,
    evidence: Mapping[str, Tensor] | None = None,
    count: Callable[[Mapping[str, int]], None] = lambda kept: None,
) -> Losses:
    """How far each task's loss rises while its metric drops by all of itself: the median over trial cuts. A task whose
    metric dropped in none of them gets its own loss, as if both rose alike.

    Args:
        count: is told the channels kept of each group of a model that runs on all batches, to count its FLOPs.
    """
    state = {name: tensor.detach() for name, tensor in named_tensors(groups.model).items()}
    ranked = {group.name: score(group, state, criterion, evidence) for group in groups.prunable}
    count({})
    loss, metric = _judged(groups.model, batches, tasks)
    rates: dict[str, list[float]] = {task.name: [] for task in tasks}
    for share in SHARES:
        keep = {
            name: np.setdiff1d(np.arange(len(scores)), lowest(scores, int(share * len(scores))))
            for name, scores in ranked.items()
        }
        count({name: len(channels) for name, channels in keep.items()})
        worse, measured = _judged(groups.cut(keep), batches, tasks)
        for task in tasks:
            rise = worse[task.name] - loss[task.name]
            drop = -task.relative_change(metric[task.name], measured[task.name])
            if rise > 0 and drop > SEEN and math.isfinite(rise) and math.isfinite(drop):
                rates[task.name].append(rise / drop)
    return {name: statistics.median(found) if found else loss[name] for name, found in rates.items()}


@torch.no_grad()
def _judged(model: nn.Module, batches: Sequence[Batch], tasks: Sequence[Task]) -> tuple[Losses, Losses]:
    """(mean losses, metrics) in one pass."""
    losses, metrics = (
        dict.fromkeys((task.name for task in tasks), 0.0),
        {t.name: copy.deepcopy(t.metric) for t in tasks},
    )
    with evaluating(model):
        for inputs, targets in batches:
            predictions = predict(model, inputs, tasks)
            for name, value in task_losses(predictions, targets, tasks).items():
                losses[name] += float(value) / len(batches)
                update(metrics[name], predictions[name], targets[name])
    return losses, {name: float(metric.compute()) for name, metric in metrics.items()}
