"""From the experts that are kept to the ChannelMap that cuts the others out of the user's own model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.channel_map import ChannelMap, named_tensors, remove_modules
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.experts.layers import ExpertLayer, find
from secateur.core.errors import BudgetError
from secateur.core.predict import evaluating, predict
from secateur.core.task import Task

Keep = Mapping[str, Sequence[int]]
"""Path of a layer → the places of the experts to keep, ascending, counted among those that are there."""


def expert_map(model: nn.Module, layers: Sequence[ExpertLayer], keep: Keep, top_k: int | None = None) -> ChannelMap:
    """The map that keeps only some experts of each layer.

    Args:
        top_k: lower every layer's k to this; as it is when None.

    Raises:
        BudgetError: a layer that would keep fewer experts than it chooses, or a k that is no smaller one.
    """
    tensors = named_tensors(model)
    kept: dict[str, dict[int, Any]] = {}
    lists: dict[str, Any] = {}
    sizes: dict[str, int | list[int]] = {}
    for layer in layers:
        index = np.array(sorted(keep.get(layer.path, range(layer.experts))), dtype=np.int64)
        k = _checked_k(layer, len(index), top_k)
        if len(index) < layer.experts:
            _keep_experts(layer, index, kept, lists, sizes)
        if k < layer.top_k:
            _keep_choices(layer, k, kept, sizes)
    shapes = {name: tuple(tensors[name].shape) for name in kept}
    shapes |= {name: (len(model.get_submodule(name)),) for name in lists}  # type: ignore[arg-type]
    return ChannelMap(kept, shapes, attributes=sizes, lists=lists)


def _checked_k(layer: ExpertLayer, experts: int, top_k: int | None) -> int:
    if top_k is not None and not 1 <= top_k <= layer.top_k:
        raise BudgetError(
            f"top-k {top_k} is not between 1 and the {layer.top_k} of {layer.path}", "it can be lowered only"
        )
    k = layer.top_k if top_k is None else top_k
    if experts < k:
        raise BudgetError(
            f"{layer.path} would keep {experts} expert{'s' * (experts != 1)} and choose {k} of them",
            f"lower it explicitly: --top-k {max(experts, 1)}, or keep more experts",
        )
    return k


def _keep_experts(layer: ExpertLayer, index: Any, kept: dict[str, Any], lists: dict[str, Any], sizes: Any) -> None:
    layout = layer.layout
    if layout.listed:
        lists[layer.name(layout.up.partition(".{}")[0])] = index
    else:
        kept.update({layer.name(part): {0: index} for part in layout.parts.values()})
    for part in filter(None, (layout.kept, layout.rows)):
        kept[layer.name(part)] = {0: index}
    if layout.count and layer.has(layout.count):
        sizes[layer.name(layout.count)] = len(index)


def _keep_choices(layer: ExpertLayer, k: int, kept: dict[str, Any], sizes: Any) -> None:
    if layer.chooses_by_tensor:
        kept[layer.name(layer.layout.top_k)] = {0: np.arange(k, dtype=np.int64)}
    else:
        sizes[layer.name(layer.layout.top_k)] = k


def numbers(layer: ExpertLayer, channels: ChannelMap) -> list[int]:
    """The original numbers of the experts that a layer keeps, of a model that the map has cut."""
    if layer.layout.kept is not None:
        return [int(number) for number in layer.kept]
    name = layer.name(layer.layout.up.partition(".{}")[0])
    index = channels.lists.get(name) if layer.layout.listed else channels.kept.get(name, {}).get(0)
    return list(range(layer.experts)) if index is None else [int(number) for number in index]


def record(label: str, model: nn.Module, channels: ChannelMap) -> dict[str, Any]:
    """What the report shows of a point's experts: those kept, and how many of them a token chooses."""
    layers = find(model)
    return {
        "point": label, "kept": {layer.path: numbers(layer, channels) for layer in layers},
        "top_k": {layer.path: layer.top_k for layer in layers},
    }  # fmt: skip


def group_of(groups: ChannelGroups, layer: ExpertLayer) -> str:
    """The channel group of a traced layer's experts."""
    wanted = layer.name(layer.layout.up), 0
    return next(name for name, group in groups.items() if wanted in {(m.parameter, m.dim) for m in group.members})


def dead_map(groups: ChannelGroups, inputs: Any, tasks: Sequence[Task]) -> ChannelMap:
    """The map that takes out what no kept task needs (other tasks' routers, heads and embeddings), as far as the model
    runs without it and computes the same."""
    model, dead = groups.model, groups.dead
    removable = dead if same_without(model, dead, inputs, tasks) else ()
    for path in () if removable else dead:
        if same_without(model, (*removable, path), inputs, tasks):
            removable = (*removable, path)
    return ChannelMap(removed_modules=removable)


def same_without(model: nn.Module, paths: Sequence[str], inputs: Any, tasks: Sequence[Task]) -> bool:
    """Whether a model runs without some modules and computes the same for its tasks."""
    small = copy.deepcopy(model)
    try:
        remove_modules(small, paths)
        with evaluating(model), evaluating(small):
            one, other = predict(model, inputs, tasks), predict(small, inputs, tasks)
    except Exception:  # the user's forward may raise anything
        return False
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
