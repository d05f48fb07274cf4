"""Twins: other people's mixtures, with the same numbers, in the form that can be traced and masked.

A list of expert modules, or code that loops over tokens, cannot be traced as a flow of channels. A twin holds the
experts stacked and calls `secateur.core.experts.mix`. Decisions are taken on it; what is cut is the user's own module.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compress.experts.layers import ExpertLayer, Layout, look_for, register
from secateur.core.experts import ExpertWeights, mix
from secateur.core.traceable import stands_in


class Twin(nn.Module):
    """A mixture of any layout with stacked experts; everything else of the original, its router say, is shared."""

    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    glu: Tensor | None
    kept: Tensor
    slots: Tensor

    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.layout, weights = layer.layout, layer.weights()
        roots = {part.partition(".")[0] for part in layer.layout.parts.values()}
        for name, child in layer.module.named_children():
            if name not in roots:
                setattr(self, name, child)
        own = vars(layer.module)
        for name, tensor in {**own["_parameters"], **own["_buffers"]}.items():
            if name not in roots and isinstance(tensor, nn.Parameter):
                setattr(self, name, tensor)
            elif name not in roots:
                self.register_buffer(name, tensor)
        for name, value in own.items():
            if name not in vars(self) and not name.startswith("_") and name not in roots:
                setattr(self, name, value)
        for role in ("up", "down", "up_bias", "down_bias", "glu"):
            tensor = getattr(weights, role)
            setattr(self, role, None if tensor is None else nn.Parameter(tensor.detach().clone()))
        self.register_buffer("kept", layer.kept.clone())
        self.register_buffer("slots", torch.arange(layer.top_k))

    def scores(self, x: Tensor, task: str | None) -> Tensor:
        return self.layout.scores(self, x, task)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument, by place or by name, are the tokens."""
        x, *rest = args or [kwargs.pop(next(iter(kwargs)))]
        scores = self.scores(x, kwargs.get("task", rest[0] if rest and isinstance(rest[0], str) else None))
        weights = ExpertWeights(self.up, self.down, self.up_bias, self.down_bias, self.glu, self.layout.activation)
        mixed = mix(x, scores, self.kept, weights, len(self.slots), self.layout.renormalise)
        return self.layout.output(mixed, scores)


register(
    Layout(
        "",
        fits=lambda module: isinstance(module, Twin),
        up="up",
        down="down",
        kept="kept",
        top_k="slots",
        scores=lambda module, x, task: module.scores(x, task),  # type: ignore[operator]
    )
)


@stands_in
def twinned(model: nn.Module) -> nn.Module:
    """The model itself where its mixtures can be traced, else a copy in which twins stand for them."""
    layers = [layer for layer in look_for(model) if layer.layout.kept is None]
    if not layers:
        return model
    paths = [layer.path for layer in layers]
    small = copy.deepcopy(model)
    places = dict(small.named_modules(remove_duplicate=False))
    for layer in look_for(small):
        if layer.path in paths:
            twin = Twin(layer)
            for path in [path for path, module in places.items() if module is layer.module]:  # it may have several
                parent, _, name = path.rpartition(".")
                setattr(small.get_submodule(parent), name, twin)
    return small
