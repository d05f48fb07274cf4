"""Sorting: the most important channels of every group first, so that the first k are the best k.

    importance of a channel = Σ |w| over the weights that read it        (Cai et al., Once-for-all, ICLR 2020)

Every member parameter is permuted along with its group, so that the model computes what it did before. Ops for which
the order of channels matters (a cumulative sum over them, say) are found by trial, and their groups stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroup, ChannelGroups
from secateur.core.errors import BudgetError
from secateur.core.inputs import call_model, takes_task
from secateur.core.predict import evaluating

CRITERIA = ("l1", "taylor", "none")
TOLERANCE = 1e-3
"""Largest accepted change of an output, relative to its size: the order of sums changes."""


def sort_channels(
    model: nn.Module,
    groups: ChannelGroups,
    names: Iterable[str],
    inputs: Any,
    tasks: Sequence[str] = (),
    criterion: str = "l1",
    gradients: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Sort the channels of the named groups, in place; returns the groups whose order had to stay.

    Args:
        model: the traced module, or one of the same class and shapes.
        criterion: "l1" of the weights that read a channel, "taylor" (|Σ w·∂L/∂w|; needs `gradients`), or "none".

    Raises:
        BudgetError: unknown criterion.
    """
    if criterion not in CRITERIA:
        raise BudgetError(f'unknown order of channels "{criterion}"', f"choose one of: {', '.join(CRITERIA)}")
    if criterion == "none":
        return []
    state = named_tensors(model)
    orders = {name: order(groups[name], state, gradients if criterion == "taylor" else None) for name in names}
    outputs = _outputs(model, inputs, tasks)
    bad = _culprits(model, groups, orders, list(orders), lambda other: _same(outputs, _outputs(other, inputs, tasks)))
    permute(model, groups, {name: found for name, found in orders.items() if name not in bad})
    return bad


def order(group: ChannelGroup, state: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None) -> Tensor:
    """Channels of a group from the most to the least important; equals keep their order."""
    scores = _scores(group, state, gradients, "in")
    if not scores.any():  # read by an op without weights: what makes the channels tells
        scores = _scores(group, state, gradients, "out")
    return torch.argsort(scores, descending=True, stable=True)


def _scores(
    group: ChannelGroup, state: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None, role: str
) -> Tensor:
    totals = torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        if member.role != role or member.parameter not in state:
            continue
        weight = state[member.parameter].detach()
        rows = weight.movedim(member.dim, 0).flatten(1).double().cpu()
        index = torch.from_numpy(member.index)
        if gradients is None:
            totals += rows.abs().sum(1)[index].sum(1)
        elif member.parameter in gradients:
            slopes = gradients[member.parameter].movedim(member.dim, 0).flatten(1).double().cpu()
            totals += (rows * slopes).sum(1)[index].sum(1).abs()
    return totals


@torch.no_grad()
def permute(model: nn.Module, groups: ChannelGroups, orders: Mapping[str, Tensor]) -> None:
    """Put the channels of groups into another order, in place: place i then holds what place order[i] held."""
    tensors = named_tensors(model)
    done: set[tuple[int, int, str]] = set()
    for name, wanted in orders.items():
        for member in groups[name].members:
            tensor = tensors.get(member.parameter)
            if tensor is None or (id(tensor), member.dim, name) in done:
                continue
            done.add((id(tensor), member.dim, name))
            index = torch.from_numpy(member.index)
            source, target = (each.flatten().to(tensor.device) for each in (index[wanted], index))
            tensor.index_copy_(member.dim, target, tensor.index_select(member.dim, source))


def _culprits(
    model: nn.Module,
    groups: ChannelGroups,
    orders: Mapping[str, Tensor],
    names: list[str],
    fits: Callable[[nn.Module], bool],
) -> list[str]:
    """Groups whose order matters: halves of a failing set are tried until single groups are left."""
    trial = copy.deepcopy(model)
    permute(trial, groups, {name: orders[name] for name in names})
    if not names or fits(trial):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    found = [
        *_culprits(model, groups, orders, names[:middle], fits),
        *_culprits(model, groups, orders, names[middle:], fits),
    ]
    return found or names


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Any, tasks: Sequence[str]) -> list[Tensor]:
    calls: Sequence[str | None] = tasks if takes_task(model) else [None]
    with evaluating(model):
        values = [call_model(model, inputs, task) for task in calls]
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(
        float((a.float() - b.float()).abs().max()) <= TOLERANCE * max(float(a.float().abs().max()), 1e-6)
        for a, b in zip(one, other, strict=True)
        if a.numel()
    )
