"""The zoo's models traced once each, and what the tests of cutting ask of a model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO

from secateur.compress.dataflow import ChannelGroup, ChannelGroups, trace
from secateur.core.inputs import call_model, takes_task

SMALL = {
    "resnet18": {"width": 8, "size": 32, "classes": 10, "batch": 2},
    "mobilenet_v2": {"width": 0.5, "size": 32, "classes": 10, "batch": 2},
}
"""Options that make the large models cheap without changing their structure."""

NAMES = sorted(ZOO.keys() - {"resnet50", "densenet121"})  # which are ResNet-18 and the small DenseNet, longer

Keeps = dict[str, np.ndarray]


@dataclass(frozen=True)
class Traced:
    name: str
    model: nn.Module
    inputs: Any
    tasks: tuple[str, ...]
    groups: ChannelGroups

    def fresh(self) -> nn.Module:
        """Another instance of the model, with the same numbers."""
        return make(self.name)[0]


def make(name: str) -> tuple[nn.Module, Any]:
    return ZOO[name](**SMALL.get(name, {}))


@functools.cache
def traced(name: str) -> Traced:
    model, inputs = make(name)
    tasks = getattr(model, "tasks", ())
    return Traced(name, model, inputs, tasks, trace_quietly(model, inputs, tasks))


def trace_quietly(model: nn.Module, inputs: Any, tasks: Sequence[str] = ()) -> ChannelGroups:
    """Without the warnings on ops that have no rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return trace(model, inputs, tasks)


def random_keep(groups: Sequence[ChannelGroup], seed: int) -> Keeps:
    """Of each group between one channel and all, any of them."""
    draw = np.random.default_rng(seed)
    return {
        group.name: np.sort(draw.choice(group.channels, draw.integers(1, group.channels + 1), replace=False))
        for group in groups
    }


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any, tasks: Sequence[str] = ()) -> list[Tensor]:
    """All tensors that the model returns in evaluation mode, for all of its tasks."""
    model.eval()
    calls = [{"task": task} for task in tasks] if takes_task(model) else [{}]
    return [leaf for kwargs in calls for leaf in leaves(call_model(model, inputs, **kwargs))]


def masked_outputs(groups: ChannelGroups, keep: Mapping[str, Any], inputs: Any) -> list[Tensor]:
    masked = groups.mask(keep)
    return [leaf for call in range(len(groups.graphs)) for leaf in masked(inputs, call).values()]


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal up to the order of floating-point sums: 1e-4 of each output's own size."""
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max().clamp_min(1e-6))
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-4)


def assert_identical(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Two state dicts, bit by bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
