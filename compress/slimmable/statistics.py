"""Statistics: running means and variances of normalisation layers, computed anew for one configuration.

What flows into a layer depends on every width before it, so statistics belong to a whole configuration; those of one
configuration do not fit another (Yu and Huang, Universally Slimmable Networks, ICCV 2019, recompute them after
training). A decoder's depend on the encoder's widths and its own only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.compress.slimmable.elastic import ElasticModel, Subnet
from secateur.compress.slimmable.space import Configuration
from secateur.core.modes import averaging
from secateur.core.predict import predict
from secateur.core.task import Batch, Task

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def norms(model: nn.Module) -> list[str]:
    """Paths of the layers that keep running statistics of batches; those that instance norms may keep are trained."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def inputs_of(batches: Iterable[Batch], count: int) -> list[Any]:
    """The inputs of the first batches, kept for many configurations."""
    return [inputs for inputs, _ in islice(batches, count)]


@torch.no_grad()
def recalibrated(
    elastic: ElasticModel, configuration: Configuration, inputs: Sequence[Any], tasks: Sequence[Task]
) -> dict[str, Tensor]:
    """Statistics of a configuration, by buffer name: plain averages over the given inputs.

    Layers without statistics of their own, and private ones, which training keeps, give nothing.
    """
    subnet = elastic.at(configuration)
    paths = norms(subnet.skeleton) if not elastic.private else []
    if not paths or not inputs:
        return {}
    fresh = {f"{path}.{name}": _blank(subnet.tensors[f"{path}.{name}"], name) for path in paths for name in BUFFERS}
    subnet = Subnet(subnet.skeleton, {**subnet.tensors, **fresh})
    layers = [layer for path in paths if isinstance(layer := subnet.skeleton.get_submodule(path), _BatchNorm)]
    with averaging(layers):
        for batch in inputs:
            predict(subnet, batch, tasks)  # type: ignore[arg-type]
    return fresh


def _blank(tensor: Tensor, name: str) -> Tensor:
    return torch.ones_like(tensor) if name == "running_var" else torch.zeros_like(tensor)
