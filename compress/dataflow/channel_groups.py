"""ChannelGroups: a traced model that can be masked, cut and priced group by group."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from secateur.compress.channel_map import ChannelMap, Index, named_tensors, within
from secateur.compress.dataflow.attributes import Binding, resized
from secateur.compress.dataflow.coupling import Coupling, channels_sized_in_code
from secateur.compress.dataflow.groups import ChannelGroup, Groups, Keep, removed
from secateur.compress.dataflow.mask import Masked, masked_state
from secateur.compress.dataflow.replay import Replay
from secateur.compress.dataflow.scales import Scale
from secateur.compress.dataflow.space import Components
from secateur.core.errors import BudgetError
from secateur.core.modes import forget
from secateur.profiles.graph import Graph


class ChannelGroups(Mapping[str, ChannelGroup]):
    """The channel groups of a model, by name.

    Attributes:
        model: the traced module; never changed, unless `cut(..., inplace=True)`.
        graphs: its evaluation-mode graphs, one per call that its tasks need.
        dead: topmost paths of modules that no output in evaluation mode depends on.
        removable: those of them that the model runs without, as found by trial.
        trains: whether training mode could be traced too, so that auxiliary heads are cut along.
        couplable: path of a module whose code may take one size from another → how (see `coupling`).
        bindings: the modules' integer attributes that count channels, which a cut rewrites.
        scales: numbers that the code computes from sizes, which masks follow.
    """

    def __init__(
        self,
        model: nn.Module,
        graphs: Sequence[Graph],
        labels: Mapping[Node, Any],
        components: Components,
        groups: Groups,
        dead: tuple[str, ...],
        trains: bool,
        bindings: tuple[Binding, ...] = (),
        removable: tuple[str, ...] = (),
        couplable: Mapping[str, Sequence[Coupling]] = MappingProxyType({}),
        scales: Sequence[Scale] = (),
    ) -> None:
        self.model, self.graphs, self.labels, self.components = model, tuple(graphs), labels, components
        self.groups, self.dead, self.trains, self.removable = groups, dead, trains, removable
        self.bindings, self.couplable, self.scales = bindings, couplable, tuple(scales)

    def settled(self, groups: Groups, removable: tuple[str, ...]) -> ChannelGroups:
        """The same trace with what trial cuts found."""
        return self._like(self.model, groups, removable)

    def of(self, model: nn.Module) -> ChannelGroups:
        """The same groups of another instance of the model's class, of the same sizes."""
        return self._like(model, self.groups, self.removable)

    def _like(self, model: nn.Module, groups: Groups, removable: tuple[str, ...]) -> ChannelGroups:
        same = self.graphs, self.labels, self.components, groups, self.dead, self.trains, self.bindings
        return ChannelGroups(model, *same, removable, self.couplable, self.scales)

    def __getitem__(self, name: str) -> ChannelGroup:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        return self.groups.prunable

    def matching(self, patterns: Iterable[str]) -> set[str]:
        """Names of the groups that some pattern fits (`stem.*`).

        Raises:
            BudgetError: a pattern that fits none.
        """
        found = {pattern: fnmatch.filter(self.groups, pattern) for pattern in patterns}
        for pattern, names in found.items():
            if not names:
                raise BudgetError(f'no channel group matches "{pattern}"', "secateur inspect lists them")
        return {name for names in found.values() for name in names}

    @cached_property
    def sized_in_code(self) -> tuple[str, ...]:
        """The prunable groups with channels in calls that take sizes from the user's code."""
        names = {component: group.name for group in self.prunable for component in group.components.tolist()}
        parts = self.components.parts()
        found = {
            names[part]
            for graph in self.graphs
            for channels in channels_sized_in_code(graph, self.labels)
            for component in np.unique(self.components.of[channels]).tolist()
            for part in parts.get(component, (component,))
            if part in names
        }
        return tuple(name for name in self if name in found)

    @cached_property
    def masked(self) -> tuple[Masked, ...]:
        """One masking interpreter per graph."""
        seen = self.labels, self.components.of, self.scales
        return tuple(Masked(Replay(graph, self.model), *seen) for graph in self.graphs)

    def gone(self, keep: Keep) -> Index:
        """The components that a choice of channels removes, the pairs that go with them included."""
        found = [self[name].components[removed(self[name], kept)] for name, kept in keep.items()]
        return self.components.closure(np.concatenate(found) if found else np.empty(0, dtype=np.int64))

    def mask(self, keep: Keep) -> MaskedModel:
        """The model without the channels that are not kept, at full size; parameters are not touched."""
        self._refuse_fixed(keep)
        return MaskedModel(self, keep)

    def channel_map(self, keep: Keep, *, remove_dead: bool = False) -> ChannelMap:
        """What `cut` would do, as data."""
        self._refuse_fixed(keep)
        tensors = named_tensors(self.model)
        gone: dict[str, dict[int, list[Index]]] = {}
        for name, kept in keep.items():
            out = removed(self[name], kept)
            for member in self[name].members if len(out) else ():
                gone.setdefault(member.parameter, {}).setdefault(member.dim, []).append(member.index[out].ravel())
        kept_indices = {
            parameter: {
                dim: np.setdiff1d(np.arange(tensors[parameter].shape[dim]), np.concatenate(out))
                for dim, out in sorted(dims.items())
            }
            for parameter, dims in gone.items()
            if not (remove_dead and within(parameter, self.removable))
        }
        shapes = {parameter: tuple(tensors[parameter].shape) for parameter in kept_indices}
        modules = self.removable if remove_dead else ()
        attributes = {
            name: size
            for name, size in resized(self.bindings, self.model, self.gone(keep)).items()
            if not within(name, modules)
        }
        return ChannelMap(kept_indices, shapes, modules, attributes)

    def cut(self, keep: Keep, *, remove_dead: bool = False, inplace: bool = False) -> nn.Module:
        """The model with the channels removed: the user's own class, smaller layers.

        Args:
            keep: group name → channels to keep. Other groups stay whole.
            remove_dead: replace the `removable` modules by identities.
            inplace: cut the traced model itself; this object must not be used afterwards.

        Raises:
            ValueError: for a group that is not prunable, or a wrong choice of channels.
        """
        forget(self.model)
        model = self.model if inplace else copy.deepcopy(self.model)
        self.channel_map(keep, remove_dead=remove_dead).apply(model)
        return model

    def _refuse_fixed(self, keep: Keep) -> None:
        for name in keep:
            if not self[name].prunable and len(removed(self[name], keep[name])):
                raise ValueError(f"group {name} is not prunable: {self[name].why_not}")


class MaskedModel:
    """A model run at full size as if channels were removed: `masked(x)` gives the outputs by name.

    For models called one task at a time, `masked(x, call=i)` runs the i-th task's graph.
    """

    def __init__(self, groups: ChannelGroups, keep: Keep) -> None:
        self._groups, self._gone = groups, groups.gone(keep)
        tensors = named_tensors(groups.model)
        self.state = masked_state(groups.groups, keep, tensors)

    @torch.no_grad()
    def __call__(self, inputs: Any, call: int = 0) -> dict[str, Any]:
        masked = self._groups.masked[call]
        values, _ = masked.run(inputs, self.state, self._gone)
        return dict(zip(masked.replay.graph.output_names, values, strict=True))
