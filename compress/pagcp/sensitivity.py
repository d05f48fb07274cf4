"""What the criteria of saliency look at besides the weights: how the losses depend on each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.compress.dataflow import ChannelGroups
from secateur.compress.pagcp.reconstruction import reconstruction_scores
from secateur.compress.pagcp.saliency import Criterion
from secateur.core.predict import losses
from secateur.core.task import Batch, Task


def evidence(
    criterion: Criterion, groups: ChannelGroups, batches: Sequence[Batch], tasks: Sequence[Task]
) -> dict[str, Tensor] | None:
    """What a criterion needs, of the model as it stands, on calibration data; the model is left as it was.

    Returns:
        parameter → a tensor of its shape, or group → scores for criteria that judge whole groups; None for criteria
        that need nothing.
    """
    if criterion.needs == "gradient":
        return gradients(groups.model, batches, tasks)
    if criterion.needs == "fisher":
        return gradients(groups.model, batches, tasks, squared=True)
    if criterion.needs == "reconstruction":
        return reconstruction_scores(groups, batches, tasks)
    return None


def gradients(
    model: nn.Module, batches: Sequence[Batch], tasks: Sequence[Task], *, squared: bool = False
) -> dict[str, Tensor]:
    """Gradient of the weighted task losses, or its square, summed over batches, of every parameter, frozen ones too;
    the model is left as it was."""
    parameters: Mapping[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    learnt = {name: parameter for name, parameter in parameters.items() if parameter.is_floating_point()}
    frozen = [parameter for parameter in learnt.values() if not parameter.requires_grad]
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for batch in batches:
            values = losses(model, batch, tasks)
            total = torch.stack([task.weight * values[task.name] for task in tasks]).sum()
            found = torch.autograd.grad(total, list(learnt.values()), allow_unused=True)
            for name, gradient in zip(learnt, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient.square() if squared else gradient
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return sums
