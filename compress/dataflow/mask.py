"""Masking: what a model computes without some of its channels, before anything is cut.

The removed channels' slices of all member parameters are zeroed, so that they neither produce nor are read. Ops whose
result depends on *how many* channels there are (a layer norm, a softmax, a mean over channels) run on the kept ones,
and so do those that make something else than a number of the zeros of a removed one (a division). Numbers that the
code computes from sizes follow them (`scales`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from secateur.compress.dataflow.groups import Groups, Index, Keep, removed
from secateur.compress.dataflow.replay import Replay
from secateur.compress.dataflow.rules import is_counting
from secateur.compress.dataflow.scales import Alive, Following, Scale
from secateur.compress.dataflow.space import Channels
from secateur.profiles.graph import op_name
from secateur.profiles.macs import arguments

_CONTRACTING = frozenset(
    ("mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "norm",
     "linalg_vector_norm", "any", "all", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv", "dot",
     "vdot", "inner")
)  # fmt: skip
_DIVIDING = frozenset(
    ("div", "divide", "true_divide", "addcdiv", "reciprocal", "rsqrt", "log", "log2", "log10", "float_power")
)
_WEIGHTED = frozenset(
    ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
)


def masked_state(groups: Groups, keep: Keep, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the member parameters of the named groups, removed channels zeroed.

    Args:
        state: the tensors to start from (masks add up when they are masked already).
    """
    masked: dict[str, Tensor] = {}
    for name, kept in keep.items():
        gone = removed(groups[name], kept)
        if len(gone) == 0:
            continue
        for member in groups[name].members:
            if member.parameter not in state:
                continue
            tensor = masked.setdefault(member.parameter, state[member.parameter].detach().clone())
            index = torch.from_numpy(member.index[gone].ravel()).to(tensor.device)
            tensor.index_fill_(member.dim, index, 0)
    return masked


class Masked:
    """One graph run without the channels of some components."""

    def __init__(
        self, replay: Replay, labels: Mapping[Node, Any], component_of: Channels, scales: Sequence[Scale] = ()
    ) -> None:
        self.replay, self._components = replay, int(component_of.max(initial=-1)) + 1
        own = [scale for scale in scales if scale.node in replay.graph.live]
        self._following = Following(own, labels, component_of)
        self._sensitive = {
            node: found
            for node in replay.graph.compute
            if (found := _sensitive_dims(node, labels, component_of)) is not None
        }

    def run(self, inputs: Any, state: Mapping[str, Tensor], gone: Index, **options: Any) -> tuple[list[Any], Any]:
        """As `Replay.run`, with the components `gone` removed; `state` must be masked accordingly."""
        if not (self._sensitive or self._following) or len(gone) == 0:
            return self.replay.run(inputs, state, **options)
        alive = np.ones(self._components, dtype=bool)
        alive[gone] = False
        return self.replay.run(inputs, state, call=lambda *call: self._call(alive, *call), **options)

    def _call(self, alive: Alive, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = self._following.arguments(node, args, kwargs, alive)
        dims = self._sensitive.get(node)
        if dims is None:
            return self.replay.execute(node, args, kwargs)
        operands, result = dims
        kept = {
            used: {dim: _kept(components, alive) for dim, components in found.items()}
            for used, found in operands.items()
        }
        if all(index is None for found in kept.values() for index in found.values()):
            return self.replay.execute(node, args, kwargs)
        small_args = _map_operands(node.args, args, lambda used, value: _gather(value, kept.get(used, {})))
        small_kwargs = _map_operands(node.kwargs, kwargs, lambda used, value: _gather(value, kept.get(used, {})))
        small = self.replay.execute(node, _resized(node, small_args), small_kwargs)
        return _scatter(small, node, [{dim: _kept(c, alive) for dim, c in found.items()} for found in result])


def _sensitive_dims(node: Node, labels: Mapping[Node, Any], component_of: Channels) -> Any:
    """(components by dimension of each operand, and of each result) of an op that feels the number of channels."""
    name = op_name(node)
    divides = name in _DIVIDING and bool(labels.get(node.args[-1]))  # type: ignore[arg-type]
    if name == "pow" and isinstance(node.args[1], (int, float)):
        divides = node.args[1] < 0
    alone = is_counting(name) or divides
    if not alone and name not in _CONTRACTING and not _weight_is_computed(node):
        return None
    if ("batch_norm" in name or name == "instance_norm") and max(labels.get(node.args[0], ()), default=0) < 2:  # type: ignore[arg-type]
        return None
    operands = {
        used: {dim: component_of[channels] for dim, channels in labels[used].items()}
        for used in node.all_input_nodes
        if isinstance(labels.get(used), dict) and labels[used]
    }
    found = labels.get(node, {})
    results = found if isinstance(found, list) else [found]
    result = [{dim: component_of[channels] for dim, channels in part.items()} for part in results]
    vanish = any(_counted(dims) - left for dims in operands.values() for left in map(_counted, result))
    return (operands, result) if operands and (alone or vanish) else None


def _counted(dims: Mapping[int, Channels]) -> Counter[bytes]:
    """How many dimensions run over the same components: of a [heads, D, D] product of heads one D may end."""
    return Counter(components.tobytes() for components in dims.values())


def _weight_is_computed(node: Node) -> bool:
    """Whether a layer's weight comes out of the graph (standardised, say), where zeros need not stay zero."""
    given = arguments(node)
    weight = given.get("weight")
    called = isinstance(weight, Node) and weight.op == "call_function"
    return called and op_name(node) in _WEIGHTED and given.get("groups", 1) == 1


def _kept(components: Channels, alive: Alive) -> Tensor | None:
    kept = alive[components]
    return None if kept.all() else torch.from_numpy(np.flatnonzero(kept))


def _map_operands(template: Any, values: Any, function: Any) -> Any:
    """Apply `function(node, value)` to the values that stand where the template has nodes."""
    leaves, spec = pytree.tree_flatten(template, is_leaf=lambda leaf: isinstance(leaf, Node))
    mapped = [
        function(leaf, value) if isinstance(leaf, Node) else value
        for leaf, value in zip(leaves, spec.flatten_up_to(values), strict=True)
    ]
    return pytree.tree_unflatten(mapped, spec)


def _gather(value: Any, kept: Mapping[int, Tensor | None]) -> Any:
    for dim, index in kept.items():
        if index is not None:
            value = value.index_select(dim, index.to(value.device))
    return value


def _resized(node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """layer_norm and rms_norm carry the normalised shape as an argument, group_norm the number of groups, which is that
    of the channels where each is its own group."""
    if op_name(node) in ("layer_norm", "rms_norm"):
        return (args[0], list(args[0].shape[-len(args[1]) :]), *args[2:])
    if op_name(node) == "group_norm" and args[1] == node.args[0].meta["val"].shape[1]:  # type: ignore[union-attr]
        return (args[0], args[0].shape[1], *args[2:])
    return args


def _scatter(value: Any, node: Node, kept: list[dict[int, Tensor | None]]) -> Any:
    """Back to full size, zeros where channels are gone."""
    if isinstance(value, (tuple, list)):
        return type(value)(_spread(part, *rest) for part, *rest in zip(value, node.meta["val"], kept, strict=True))
    return _spread(value, node.meta["val"], kept[0])


def _spread(value: Tensor, full: Tensor, kept: Mapping[int, Tensor | None]) -> Tensor:
    """In the layout that the whole result had: a `view` of it may follow."""
    for dim, index in kept.items():
        if index is None:
            continue
        shape = list(value.shape)
        shape[dim] = full.shape[dim]
        value = _zeros(value, shape, full.stride()).index_copy_(dim, index.to(value.device), value)
    return value


def _zeros(like: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Zeros whose dimensions lie in memory in the order of some strides."""
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    return like.new_zeros([shape[dim] for dim in order]).permute(*map(order.index, range(len(shape))))
