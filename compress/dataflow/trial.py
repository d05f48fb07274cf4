"""Trial cuts: does the model's own forward accept smaller layers, and compute what masking promises?

The graph shows the sizes of one trace; a user's code may hold some of them as constants (`x.split(16, 1)`,
`x.view(b, 8, 64)`). Such groups are found by cutting a copy and running it, and are kept whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.channel_map import remove_modules
from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.groups import Groups, Index
from secateur.core.predict import as_args, takes_task

TOLERANCE = 1e-3
"""Largest accepted difference between masked and cut outputs, relative to the outputs' own size."""


def settle(groups: ChannelGroups, inputs: Any, tasks: Sequence[str]) -> ChannelGroups:
    """The same groups, with those that a trial cut proves unusable marked not prunable, and why; and the dead modules
    that a trial shows to be removable."""
    names = [group.name for group in groups.prunable]
    bad = _culprits(groups, names, inputs, tasks)
    settled = [
        replace(group, why_not=f"a trial cut failed: {bad[group.name]}") if group.name in bad else group
        for group in groups.values()
    ]
    removable = tuple(path for path in groups.dead if _runs_without(groups, (path,), inputs, tasks))
    return groups.settled(Groups(settled), removable if _runs_without(groups, removable, inputs, tasks) else ())


def _runs_without(groups: ChannelGroups, paths: Sequence[str], inputs: Any, tasks: Sequence[str]) -> bool:
    """Whether the model gives the same outputs, and trains, without some of its dead modules."""
    small = copy.deepcopy(groups.model).eval()
    remove_modules(small, paths)
    whole = groups.mask({})
    try:
        for call in range(len(groups.graphs)):
            pairs = zip(whole(inputs, call).values(), _outputs(small, inputs, tasks, call), strict=True)
            if any(_difference(one, other) > TOLERANCE for one, other in pairs):
                return False
        if groups.trains:
            _outputs(small.train(), inputs, tasks, 0)
    except Exception:  # the user's forward may raise anything
        return False
    return True


def _culprits(groups: ChannelGroups, names: Sequence[str], inputs: Any, tasks: Sequence[str]) -> dict[str, str]:
    """Groups that fail, with the reason: halves of a failing set are tried until single groups are left; what only
    fails together is given up together."""
    failure = _try(groups, names, inputs, tasks)
    if failure is None:
        return {}
    if len(names) == 1:
        return {names[0]: failure}
    middle = len(names) // 2
    found = _culprits(groups, names[:middle], inputs, tasks) | _culprits(groups, names[middle:], inputs, tasks)
    rest = [name for name in names if name not in found]
    together = _try(groups, rest, inputs, tasks) if rest else None
    return found if together is None else found | dict.fromkeys(rest, together)


def _try(groups: ChannelGroups, names: Iterable[str], inputs: Any, tasks: Sequence[str]) -> str | None:
    """What goes wrong when half of every named group is cut; None when nothing does."""
    keep = {name: half(groups[name].channels) for name in names}
    expected = groups.mask(keep)
    try:
        small = groups.cut(keep).eval()
        for call, graph in enumerate(groups.graphs):
            found = _outputs(small, inputs, tasks, call)
            for name, one, other in zip(graph.output_names, expected(inputs, call).values(), found, strict=True):
                difference = _difference(one, other)
                if not difference <= TOLERANCE:
                    return f"output {name or call} differs from the masked model's by {difference:.2g} (relative)"
        if groups.trains:
            _outputs(copy.deepcopy(small).train(), inputs, tasks, 0)
    except Exception as error:  # the user's forward may raise anything
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    return None


def half(channels: int) -> Index:
    """About half of the channels, spread irregularly so that no regular slicing fits by accident."""
    order = np.argsort((np.arange(channels) * 0.6180339887) % 1.0, kind="stable")
    return np.sort(order[: max(1, channels // 2)]).astype(np.int64)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Any, tasks: Sequence[str], call: int) -> list[Tensor]:
    kwargs = {"task": tasks[call]} if takes_task(model) else {}
    leaves = pytree.tree_leaves(model(*as_args(inputs), **kwargs))
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if one.numel() == 0:
        return 0.0
    return float((one.float() - other.float()).abs().max() / one.float().abs().max().clamp_min(1e-6))
