"""ElasticModel: one set of weights that runs at every configuration, with the user's class and code unchanged.

For each configuration there is a *skeleton*, the user's own module cut as usual but without memory, and the weights
are slices of the full ones, taken along the channel map. So the elastic model at a configuration computes, bit for
bit, what the static cut model does, and gradients flow back into the full weights.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.compress.channel_map import ChannelMap, Index, tensor_aliases
from secateur.compress.slimmable.space import Configuration, Space
from secateur.core.errors import BudgetError

SKELETONS = 64
"""Skeletons that are kept; they are small and quick to make."""
PRIVATE_LIMIT = 64
"""Sets of private statistics that one layer may have."""
State = Mapping[str, Tensor]


class Subnet:
    """The model at one configuration: called like the user's model, in whose place `predict` takes it."""

    def __init__(self, skeleton: nn.Module, tensors: State) -> None:
        self.skeleton, self.tensors = skeleton, tensors

        @functools.wraps(skeleton.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(skeleton, dict(tensors), args, kwargs)

        forward.__signature__ = inspect.signature(skeleton.forward)  # type: ignore[attr-defined]
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class ElasticModel(nn.Module):
    """A model at every configuration of a space.

    Args:
        model: of the traced class, channels sorted; its parameters are those that are trained.
        private: give normalisation layers with running statistics a set of parameters and statistics for each of
            their widths ("switchable"), instead of shared parameters and recalibrated statistics.
        base: how the model itself was cut from the user's, where it was pruned before.
    """

    def __init__(
        self, model: nn.Module, space: Space, *, private: bool = False, base: ChannelMap | None = None
    ) -> None:
        super().__init__()
        self.model, self.base = model, base or ChannelMap()
        self.private = nn.ModuleDict()
        self._space = [space]  # in a list, so that copies and moves of the module leave it alone
        self._skeletons: OrderedDict[Configuration, nn.Module] = OrderedDict()
        self._plans: dict[Configuration, dict[str, dict[int, Index]]] = {}
        self._names = {alias: names[0] for alias, names in tensor_aliases(model).items()}
        if private:
            self._add_private()

    @property
    def space(self) -> Space:
        return self._space[0]

    def at(self, configuration: Configuration, statistics: State | None = None, *, training: bool = False) -> Subnet:
        """The model at a configuration.

        Args:
            statistics: buffers, by name, that stand in for the sliced ones (recalibrated statistics).
            training: as `nn.Module.train`. In training, running statistics of shared norms change at the largest
                configuration only.
        """
        skeleton = self._skeleton(configuration).train(training)
        return Subnet(skeleton, {**self.tensors(configuration), **(statistics or {})})

    def tensors(self, configuration: Configuration) -> dict[str, Tensor]:
        """Parameters and buffers at a configuration, by their first name: slices of the full ones."""
        plan = self._plan(configuration)
        found = {name: _sliced(tensor, plan.get(name, {})) for name, tensor in self._own()}
        if configuration != self.space.largest:
            buffers = {name for name, _ in self.model.named_buffers()}
            found = {name: t.clone() if name in buffers and name not in plan else t for name, t in found.items()}
        return {**found, **self._private_tensors(configuration)}

    def static(self, configuration: Configuration, statistics: State | None = None) -> nn.Module:
        """A model of the user's class with smaller layers and weights of its own, in evaluation mode."""
        model = copy.deepcopy(self.model)
        self.space.channel_map(configuration).apply(model)
        state = {**self.tensors(configuration), **(statistics or {})}
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(state[name])
        return model.eval()

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    def _plan(self, configuration: Configuration) -> dict[str, dict[int, Index]]:
        """Tensor → the kept indices of the dimensions that are cut."""
        if configuration not in self._plans:
            kept = self.space.channel_map(configuration).kept
            self._plans[configuration] = {self._names[name]: dict(dims) for name, dims in kept.items()}
        return self._plans[configuration]

    def _skeleton(self, configuration: Configuration) -> nn.Module:
        if configuration in self._skeletons:
            self._skeletons.move_to_end(configuration)
            return self._skeletons[configuration]
        memo: dict[int, Any] = {id(tensor): _hollow(tensor) for _, tensor in self._own()}
        skeleton = copy.deepcopy(self.model, memo)
        self.space.channel_map(configuration).apply(skeleton)
        self._skeletons[configuration] = skeleton
        if len(self._skeletons) > SKELETONS:
            self._skeletons.popitem(last=False)
        return skeleton

    # --- private normalisation --------------------------------------------------------------------------------------

    def _add_private(self) -> None:
        for path, norm in self.model.named_modules():
            if not isinstance(norm, _NormBase) or not norm.track_running_stats:
                continue
            counts = self._counts_of(path)
            combinations = list(itertools.product(*(sorted(set(each)) for each in counts.values())))
            if len(combinations) > PRIVATE_LIMIT:
                raise BudgetError(
                    f"{path} would need {len(combinations)} sets of private statistics",
                    "use shared statistics, which are recalibrated, or fewer widths",
                )
            for chosen in combinations:
                kept = dict(zip(counts, chosen, strict=True))
                self.private[_key(path, kept)] = _cut_norm(norm, self._index_of(path, kept))

    def _counts_of(self, path: str) -> dict[str, tuple[int, ...]]:
        """Elastic groups that a norm's channels belong to → the channels they can keep."""
        names = {f"{path}.weight", f"{path}.running_mean"}
        groups = self.space.groups
        return {
            name: counts
            for stage in self.space.stages
            for name, counts in stage.channels.items()
            if any(member.parameter in names for member in groups[name].members)
        }

    def _index_of(self, path: str, kept: Mapping[str, int]) -> Index | None:
        """The indices of a norm's channels that stay when its groups keep so many."""
        found = self.space.groups.channel_map({name: range(count) for name, count in kept.items()}).kept
        return found.get(f"{path}.running_mean", {}).get(0)

    def _private_tensors(self, configuration: Configuration) -> dict[str, Tensor]:
        if not self.private:
            return {}
        channels, found = self.space.channels(configuration), dict[str, Tensor]()
        for path, norm in self.model.named_modules():
            if isinstance(norm, _NormBase) and norm.track_running_stats:
                own = self.private[_key(path, {name: channels[name] for name in self._counts_of(path)})]
                found.update({f"{path}.{name}": tensor for name, tensor in own.named_parameters()})
                found.update({f"{path}.{name}": tensor for name, tensor in own.named_buffers()})
        return found


def _key(path: str, kept: Mapping[str, int]) -> str:
    """A name in a ModuleDict, which may hold no dots."""
    return "-".join([path.replace(".", "/"), *map(str, kept.values())])


def _cut_norm(norm: _NormBase, index: Index | None) -> nn.Module:
    small = copy.deepcopy(norm)
    if index is None:
        return small
    kept = torch.from_numpy(index)
    small.num_features = len(index)
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.ndim:
                part = tensor.detach()[kept].clone()
                setattr(small, name, nn.Parameter(part) if isinstance(tensor, nn.Parameter) else part)
    return small


def _hollow(tensor: Tensor) -> Tensor:
    """The tensor without memory."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _sliced(tensor: Tensor, dims: Mapping[int, Index]) -> Tensor:
    """The kept part, in the memory layout of the whole."""
    if not dims:
        return tensor
    small = tensor
    for dim, index in dims.items():
        last = int(index[-1]) + 1
        if last == len(index):
            small = small.narrow(dim, 0, last)
        else:
            small = small.index_select(dim, torch.from_numpy(index).to(tensor.device))
    last_layout = tensor.ndim == 4 and not tensor.is_contiguous()
    # A clone, as `contiguous` keeps odd strides of dimensions of size 1; torch chooses kernels by strides, and by
    # whether a weight wants a gradient, even where none is computed.
    small = small.clone(memory_format=torch.channels_last if last_layout else torch.contiguous_format)
    return small if torch.is_grad_enabled() else small.requires_grad_(tensor.requires_grad)
