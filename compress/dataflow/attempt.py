"""One trial cut: cut some groups in a copy of the model, run it, compare it with the masked model.

The copy's parameters are made lively first: a scale that is still zero or one everywhere, as in a fresh model, would
hide that wrong channels meet.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.groups import ChannelGroup, Index, Keep
from secateur.compress.dataflow.scales import Scale, scales
from secateur.core.errors import ModelError, described
from secateur.core.inputs import call_model, mapped, takes_task
from secateur.core.modes import forget
from secateur.profiles.graph import capture_tasks, op_name

WIDE = 40
"""Channels of a group of which the largest published ratio, 0.95, leaves two."""
TOLERANCE = 1e-4
"""Largest accepted difference between masked and cut outputs, relative to the outputs' own size."""
SLIGHT = 0.1
"""A difference up to which rounding may be the reason: whether it is, float64 tells. Where a model selects, any is."""
SELECTING = frozenset(("topk", "sort", "argsort", "argmax", "argmin"))
"""Ops in which rounding can turn one choice into another."""
EXACT = 1e-9
"""Largest accepted difference in float64."""


@dataclass(frozen=True)
class Failure:
    """Why a cut model is wrong, and the path of the module that raised, or that it `differs` from the masked model."""

    message: str
    module: str = ""
    differs: bool = False

    def __str__(self) -> str:
        return f"{self.message}{f' in {self.module}' if self.module else ''}"


class Attempts:
    """Trial cuts of one model; each set of groups is tried once."""

    def __init__(self, groups: ChannelGroups, inputs: Any, tasks: Sequence[str]) -> None:
        self._groups, self._inputs, self._tasks = groups.of(lively(groups.model)), inputs, tasks
        self._numbers = {name: number for number, name in enumerate(groups)}
        self._codes = codes([groups[name] for name in groups.sized_in_code])
        selects = any(op_name(node) in SELECTING for graph in groups.graphs for node in graph.compute)
        self._slight = math.inf if selects else SLIGHT
        self._found: dict[frozenset[str], Failure | None] = {}

    def __call__(self, names: Sequence[str]) -> Failure | None:
        """What goes wrong when every named group is cut, to about half or to one channel; None when nothing does."""
        key = frozenset(names)
        if key not in self._found:
            self._found[key] = self._try(names) if names else None
        return self._found[key]

    def scales(self, names: Sequence[str]) -> list[Scale]:
        """The numbers that the code computes from sizes, as a cut of every named group shows them."""
        keep, components = next(self._draws(names)), self._groups.components.of
        alive = np.ones(int(components.max(initial=-1)) + 1, dtype=bool)
        alive[self._groups.gone(keep)] = False
        try:
            cut = capture_tasks(self._groups.cut(keep).eval(), self._inputs, self._tasks)
        except ModelError:
            return []
        return scales(self._groups.graphs, cut, self._groups.labels, components, alive)

    def _try(self, names: Sequence[str]) -> Failure | None:
        for draw, keep in enumerate(self._draws(names)):
            places: list[str] = []
            try:
                failure = self._compare(keep, places, train=self._groups.trains and draw == 0)
            except Exception as error:  # the user's forward may raise anything
                failure = Failure(described(error, 160), places[-1] if places else "")
            if failure:
                return failure
        return None

    def _draws(self, names: Sequence[str]) -> Iterator[Keep]:
        """What to keep in one trial after the other. After the first, some groups are whole, so that of any two whose
        sizes the code may hold or take from each other, one is once cut while the other is not: sizes that must agree
        do not agree by accident every time."""
        yield {name: some(self._groups[name].channels, self._numbers[name]) for name in names}
        for bit in range(max(2, (len(set(self._codes.values())) + 1).bit_length())):  # no code has all bits
            choose = (last, first)[bit % 2]
            cut = [name for name in names if not self._codes.get(name, 0) >> bit & 1]
            if cut:
                yield {name: choose(self._groups[name].channels, self._numbers[name]) for name in cut}

    def _compare(self, keep: Keep, places: list[str], *, train: bool) -> Failure | None:
        """Cut and masked model on the same input, then a training pass of the cut one."""
        small = self._groups.cut(keep).eval()
        with _watched(small, places):
            found = self._outputs(self._groups, small, self._inputs)
        differing = [
            (name, off)
            for name, off, limit in _differences(self._groups, keep, self._inputs, found)
            if not off <= limit
        ]
        if differing and not (all(off <= self._slight for _, off in differing) and self._rounded(keep)):
            name, off = differing[0]
            return Failure(f"output {name} differs from the masked model's by {off:.2g} (relative)", differs=True)
        if train:
            with _watched(small, places):
                outputs(small.train(), self._inputs, self._tasks, 0)
        return None

    def _outputs(self, groups: ChannelGroups, model: nn.Module, inputs: Any) -> list[list[Tensor]]:
        return [outputs(model, inputs, self._tasks, call) for call in range(len(groups.graphs))]

    def _rounded(self, keep: Keep) -> bool:
        """Whether masked and cut model agree in float64: then rounding is all that they differ by."""
        try:
            groups, inputs = self._in_float64
            found = self._outputs(groups, groups.cut(keep).eval(), inputs)
            return all(off <= EXACT for _, off, _ in _differences(groups, keep, inputs, found))
        except Exception:  # the user's forward may insist on a type, and some devices have no float64
            return False

    @cached_property
    def _in_float64(self) -> tuple[ChannelGroups, Any]:
        inputs = mapped(lambda each: each.double() if each.is_floating_point() else each, self._inputs)
        return self._groups.of(copy.deepcopy(self._groups.model).double()), inputs


def _differences(
    groups: ChannelGroups, keep: Keep, inputs: Any, found: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[str, float, float]]:
    """Of each output of the cut model: its name, how far it is from the masked model's, and how far it may be."""
    masked = groups.mask(keep)
    for call, graph in enumerate(groups.graphs):
        wanted = masked(inputs, call).values()
        for name, one, other in zip(graph.output_names, wanted, found[call], strict=True):
            yield str(name or call), difference(one, other), tolerance(one)


@contextlib.contextmanager
def _watched(model: nn.Module, places: list[str]) -> Iterator[None]:
    """Keep the paths of the modules that are running, innermost last, also when one raises."""

    def leave(*_: Any) -> None:
        places.pop()

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: places.append(path)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def lively(model: nn.Module) -> nn.Module:
    """A copy whose parameters differ from channel to channel, and whose weights are large enough that attention looks
    at something: where all scores are alike, a wrong scale of them would not show."""
    generator = torch.Generator().manual_seed(0)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in named_tensors(fresh).items():
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if not isinstance(tensor, nn.Parameter) and not name.endswith(("running_mean", "running_var")):
                continue  # a table that the code computes with: places, say
            if bool((tensor == tensor.flatten()[0]).all()):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                tensor.copy_(tensor * (0.75 + noise / 2) if bool(tensor.any()) else noise / 4)
            elif tensor.dim() > 1:
                size = float(tensor.double().pow(2).mean().sqrt()) * tensor[0].numel() ** 0.5
                if 0 < size < 1:
                    tensor.div_(size)
    forget(fresh)
    return fresh


def codes(groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """A number from 1 for each group; those of repeated blocks share it."""
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(map(kind_of, groups)), 1)}
    return {group.name: kinds[kind_of(group)] for group in groups}


def kind_of(group: ChannelGroup) -> tuple[tuple[str, int, str, tuple[int, ...]], ...]:
    """What groups of repeated blocks have in common: members but for numbers in their names, and where in them the
    first channel sits, which tells heads from their width."""
    return tuple(
        (
            ".".join(part for part in member.parameter.split(".") if not part.isdigit()),
            member.dim,
            member.role,
            tuple((member.index[0] - member.index[0, 0]).tolist()),
        )
        for member in group.members
    )


def some(channels: int, number: int) -> Index:
    """Between 3 and 7 tenths of a group's channels, spread irregularly."""
    order = np.argsort((np.arange(channels) * 0.6180339887) % 1.0, kind="stable")
    return np.sort(order[: _width(channels, number)]).astype(np.int64)


def last(channels: int, number: int) -> Index:
    """The last ones, odd in number where `some` keeps an even one: code that takes a half of the width it sees
    (`x[:, : c // 2]`) then meets an odd width, and channels of the other half, which `some` can miss by luck."""
    width = _width(channels, number + 0.37)
    if (width - _width(channels, number)) % 2 == 0:
        width += 1 if width + 1 < channels else -1
    return np.arange(channels - max(1, width), channels)


def first(channels: int, number: int) -> Index:
    """One channel: the smallest width that a user may choose, and its half is none. Two of a wide group, of which
    nobody leaves one: a weight that is standardised over a single input is none."""
    return np.arange(1 if channels < WIDE else 2)


def _width(channels: int, number: float) -> int:
    """How many: the group's number chooses, so that groups of equal sizes are cut to different ones, and no size fits
    by accident."""
    share = 0.3 + 0.4 * (number * 0.6180339887 % 1.0)
    return min(max(1, round(share * channels)), channels - 1)


def tolerance(output: Tensor) -> float:
    """What rounding may make of an output's type."""
    return max(TOLERANCE, 16 * torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any, tasks: Sequence[str], call: int) -> list[Tensor]:
    """The distinct tensors that one call returns."""
    leaves = pytree.tree_leaves(call_model(model, inputs, tasks[call] if takes_task(model) else None))
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if one.shape != other.shape:
        return float("inf")
    if one.numel() == 0:
        return 0.0
    one, other = (value if value.is_complex() else value.double() for value in (one, other))
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-6))
