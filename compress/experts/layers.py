"""Expert layers: where a mixture of experts keeps its parts, so that one extraction serves all of them.

    register(Layout(
        "mine", fits=lambda m: isinstance(m, MyMoE), up="experts.{}.fc1.weight", down="experts.{}.fc2.weight",
        scores=lambda m, x, task: m.router(x).softmax(-1), rows="router.weight", top_k="k", count="n",
    ))

`{}` stands for the number of an expert in a list; without it, a parameter is stacked, experts first. Known: M³ViT (and
anything with FastMoE's names), Mixtral's lists, and stacked 3-D parameters as transformers 5 has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compress.channel_map import named_tensors
from secateur.core.errors import ModelError
from secateur.core.experts import ExpertWeights

Scores = Callable[[nn.Module, Tensor, "str | None"], Tensor]


@dataclass(frozen=True)
class Layout:
    """How one kind of mixture is built. Names are relative to the mixture's module.

    Args:
        name: what it is called in messages, "" for one that is not listed there.
        fits: whether a module is of this kind.
        up, down, up_bias, down_bias, glu: the weights of `ExpertWeights`. `[E, inputs, outputs]` with `transposed`.
        up_and_glu: one stacked parameter that holds glu, then up, along the hidden dimension, instead of both.
        scores: `scores(module, tokens, task)`: of every row of the router, a softmax over all of them.
        rows: parameter whose rows go with the experts; None where the router keeps its rows (see `kept`).
        kept: buffer with the router's number of each expert, for routers that keep their rows.
        top_k: attribute with k, or a buffer with k entries.
        count: attribute with the number of experts, "" for none.
        output: from the mixed tokens [N, T, D] and the scores to what the module's forward returns.
    """

    name: str
    fits: Callable[[nn.Module], bool]
    up: str
    down: str
    scores: Scores
    top_k: str
    up_bias: str | None = None
    down_bias: str | None = None
    glu: str | None = None
    up_and_glu: bool = False
    transposed: bool = False
    activation: str = "gelu"
    renormalise: bool = False
    rows: str | None = None
    kept: str | None = None
    count: str = ""
    output: Callable[[Tensor, Tensor], Any] = field(default=lambda mixed, scores: mixed)

    @property
    def listed(self) -> bool:
        """Whether experts are modules of a list, rather than slices of stacked parameters."""
        return "{}" in self.up

    @property
    def parts(self) -> dict[str, str]:
        """Role → name of the parameter, for those that there are."""
        roles = ("up", "down", "up_bias", "down_bias", "glu")
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}


_LAYOUTS: list[Layout] = []


def register(layout: Layout) -> Layout:
    """Make a kind of mixture known; the one registered last is tried first."""
    _LAYOUTS.insert(0, layout)
    return layout


@dataclass(frozen=True)
class ExpertLayer:
    """One mixture of experts of a model."""

    path: str
    module: nn.Module
    layout: Layout

    @property
    def experts(self) -> int:
        """Number of experts that are there."""
        if self.layout.listed:
            return len(_list(self.module, self.layout.up))
        return int(_get(self.module, self.layout.up).shape[0])

    @property
    def chooses_by_tensor(self) -> bool:
        """Whether top-k is the length of a tensor, rather than a number."""
        return isinstance(_get(self.module, self.layout.top_k), Tensor)

    @property
    def top_k(self) -> int:
        value = _get(self.module, self.layout.top_k)
        return len(value) if isinstance(value, Tensor) else int(value)

    def choose(self, count: int) -> None:
        """Let every token go through so many experts."""
        owner, _, name = self.layout.top_k.rpartition(".")
        module = _get(self.module, owner) if owner else self.module
        value = getattr(module, name)
        if isinstance(value, Tensor):
            setattr(module, name, torch.arange(count, device=value.device, dtype=value.dtype))
        else:
            setattr(module, name, count)

    def has(self, dotted: str) -> bool:
        """Whether the layer's module has something of that name."""
        return _has(self.module, dotted)

    @property
    def kept(self) -> Tensor:
        """The router's number of each expert."""
        if self.layout.kept is None:
            return torch.arange(self.experts, device=next(self.module.parameters()).device)
        kept: Tensor = _get(self.module, self.layout.kept)
        return kept

    def name(self, part: str) -> str:
        """The full name of a parameter of the layer."""
        return f"{self.path}.{part}" if self.path else part

    def scores(self, x: Tensor, task: str | None) -> Tensor:
        """Scores of every row of the router [..., R].

        Raises:
            ModelError: not a number, or not as many rows as the experts need.
        """
        found = self.layout.scores(self.module, x, task)
        rows, needed = found.shape[-1], int(self.kept.max()) + 1
        if rows < needed or (self.layout.kept is None and rows != needed):
            raise ModelError(
                f"the router of {self.path} scores {rows} experts, the layer has {needed}",
                "load a checkpoint in which the router's rows match the experts",
            )
        if not torch.isfinite(found).all():
            raise ModelError(f"the router of {self.path} gives NaN or infinite scores", "load a sound checkpoint")
        return found

    def weights(self) -> ExpertWeights:
        """All experts' weights, stacked."""
        tensors = {role: self._stacked(part) for role, part in self.layout.parts.items()}
        if self.layout.up_and_glu:
            tensors["glu"], tensors["up"] = tensors["up"].chunk(2, dim=1)
        return ExpertWeights(**tensors, activation=self.layout.activation)

    def _stacked(self, part: str) -> Tensor:
        if "{}" in part:
            return torch.stack([_get(self.module, part.format(number)) for number in range(self.experts)])
        found: Tensor = _get(self.module, part)
        return found.transpose(1, 2) if self.layout.transposed and found.ndim == 3 else found

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weights."""
        names = {part.format(0) for part in self.layout.parts.values()}
        tensors = [_get(self.module, name) for name in names]
        shared = 1 if self.layout.listed else self.experts
        return int(sum(tensor.numel() * tensor.element_size() for tensor in tensors)) // shared


def look_for(model: nn.Module) -> list[ExpertLayer]:
    """The expert layers of a model, in the order of its modules; none where there are none."""
    layers: list[ExpertLayer] = []
    for path, module in model.named_modules():
        layout = next((each for each in _LAYOUTS if each.fits(module)), None)
        if layout is not None:
            layers.append(ExpertLayer(path, module, layout))
    return layers


def find(model: nn.Module) -> list[ExpertLayer]:
    """The expert layers of a model, in the order of its modules.

    Raises:
        ModelError: there are none; the message says which kinds were looked for.
    """
    layers = look_for(model)
    if not layers:
        raise ModelError(
            f"no expert layers found; looked for {', '.join(each.name for each in _LAYOUTS if each.name)}",
            "register the layout of yours: secateur.compress.experts.register(Layout(...))",
        )
    for layer in layers:
        _check(layer)
    return layers


def _check(layer: ExpertLayer) -> None:
    for name, tensor in named_tensors(layer.module).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f'"{layer.name(name)}" holds NaN or infinite values', "load a sound checkpoint")
    if layer.top_k > layer.experts:
        raise ModelError(
            f"{layer.path} chooses {layer.top_k} of {layer.experts} experts", "lower its top-k to the experts it has"
        )
    if layer.layout.rows is not None:
        rows = len(_get(layer.module, layer.layout.rows))
        if rows != layer.experts:
            raise ModelError(
                f"the router of {layer.path} has {rows} rows, the layer {layer.experts} experts",
                "load a checkpoint in which the router's rows match the experts",
            )


def _get(module: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        module = module[int(part)] if part.isdecimal() else getattr(module, part)
    return module


def _list(module: nn.Module, pattern: str) -> nn.ModuleList:
    found: nn.ModuleList = _get(module, pattern.partition(".{}")[0])
    return found


def _has(module: nn.Module, *names: str) -> bool:
    try:
        return all(_get(module, name) is not None for name in names)
    except (AttributeError, IndexError, TypeError):
        return False


def _router(module: Any, x: Tensor, task: str | None) -> Tensor:
    """Scores of a plain linear router in `gate`; transformers' routers are no Linear but hold a weight [E, D]."""
    return torch.nn.functional.linear(x, module.gate.weight).softmax(-1)


_STACKED = register(
    Layout(
        "stacked 3-D parameters (experts.gate_up_proj, experts.down_proj)",
        fits=lambda m: _has(m, "experts.gate_up_proj", "experts.down_proj", "gate.weight", "top_k"),
        up="experts.gate_up_proj",
        down="experts.down_proj",
        up_and_glu=True,
        activation="silu",
        renormalise=True,
        scores=_router,
        rows="gate.weight",
        top_k="top_k",
        count="num_experts",
    )
)
register(
    replace(
        _STACKED,
        name="Mixtral's lists (experts.{}.w1, w2, w3)",
        fits=lambda m: _has(m, *(f"experts.0.{part}.weight" for part in ("w1", "w2", "w3")), "gate.weight", "top_k"),
        up="experts.{}.w3.weight",
        down="experts.{}.w2.weight",
        glu="experts.{}.w1.weight",
        up_and_glu=False,
    )
)
register(
    Layout(
        "M³ViT (experts.htoh4, experts.h4toh)",
        fits=lambda m: _has(m, "experts.htoh4.weight", "experts.h4toh.weight", "kept", "slots", "scores"),
        up="experts.htoh4.weight",
        down="experts.h4toh.weight",
        up_bias="experts.htoh4.bias",
        down_bias="experts.h4toh.bias",
        scores=lambda m, x, task: m.scores(x, task),  # type: ignore[operator]
        kept="kept",
        top_k="slots",
    )
)
