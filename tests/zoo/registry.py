"""The dictionary of test models, and what every one of them gets: a seed, evaluation mode, and weights that matter.

Fresh layers are too tame to test with: BatchNorm is the identity and biases are zero, so that wrong channels go
unnoticed. Here each statistic, scale and bias is its own random number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[nn.Module, Any]
ZOO: dict[str, Callable[..., Example]] = {}


def register(make: Callable[..., Example]) -> Callable[..., Example]:
    """Add a function `make(...) -> (model, example_input)` to the zoo, under its own name."""

    @functools.wraps(make)
    def seeded(*args: Any, **options: Any) -> Example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = make(*args, **options)
            for module in model.modules():
                randomise(module)
            return model.eval(), inputs

    ZOO[make.__name__] = seeded
    return seeded


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Weights that keep the signal's size through ReLUs; random small biases, scales around 1, running statistics."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor):
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
        elif isinstance(module, nn.PReLU):
            weight.uniform_(0.05, 0.5)
        else:
            weight.uniform_(0.5, 1.25)
    if isinstance(bias, Tensor):
        bias.normal_(0, 0.1)
    if isinstance(getattr(module, "running_mean", None), Tensor):
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.5, 1.5)


def image(channels: int = 3, size: int = 16, batch: int = 2) -> Tensor:
    """A random batch of square images, [batch, channels, size, size]."""
    return torch.randn(batch, channels, size, size)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of the image (at stride 1)."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        conv(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
