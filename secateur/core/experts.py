"""Routed experts: every token goes through the k experts that its router prefers, out of many. One function, `mix`,
and its executions, which give the same numbers:

    dense      every expert for every token, then a mask: the reference
    sparse     expert by expert: tokens gathered, one matrix product each, scattered back (M³ViT's reordering)
    batched    all experts in one padded batched product, for GPUs
    unrolled   `sparse` written for exporters: one gather, product and scatter per expert, token counts left open
    fixed      for formats without routing: every expert that is left, where a token chooses all of them
    op         one call, `secateur::routed_experts`, in a traced graph: what counting and channel dataflow read

Liang, Fan, Sarkar et al., M³ViT (NeurIPS 2022, arXiv 2210.14793): scores are a softmax over *all* experts, the best k
are kept without renormalising. Mixtral (Jiang et al., 2024) renormalises them and has gated experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.errors import no_routing

Execution = Literal["auto", "dense", "sparse", "batched", "unrolled", "fixed", "op"]
_execution: Execution = "auto"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True)
class ExpertWeights:
    """Stacked weights of E experts, `down(activation(up(x)))`, or `down(activation(glu(x)) * up(x))` with `glu`.

    Shapes: up, glu [E, hidden, width]; down [E, width, hidden]; up_bias [E, hidden]; down_bias [E, width].
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    glu: Tensor | None = None
    activation: str = "gelu"

    def __len__(self) -> int:
        return len(self.up)

    def expert(self, number: int, x: Tensor) -> Tensor:
        """One expert's output for tokens [T, width]."""
        up = F.linear(x, self.up[number], None if self.up_bias is None else self.up_bias[number])
        act = ACTIVATIONS[self.activation]
        hidden = act(up) if self.glu is None else act(F.linear(x, self.glu[number])) * up
        return F.linear(hidden, self.down[number], None if self.down_bias is None else self.down_bias[number])

    def queued(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Each expert's output for its own tokens: x [T, width] sorted by expert, `counts` of each. Experts without
        tokens are not touched."""
        up = _queued(x, counts, self.up, self.up_bias)
        act = ACTIVATIONS[self.activation]
        hidden = act(up) if self.glu is None else act(_queued(x, counts, self.glu, None)) * up
        return _queued(hidden, counts, self.down, self.down_bias)

    def all(self, x: Tensor) -> Tensor:
        """Every expert's output for its own tokens [E, T, width], or for the same ones [1, T, width]."""
        up = x @ self.up.transpose(1, 2)
        up = up if self.up_bias is None else up + self.up_bias.unsqueeze(1)
        act = ACTIVATIONS[self.activation]
        hidden = act(up) if self.glu is None else act(x @ self.glu.transpose(1, 2)) * up
        down = hidden @ self.down.transpose(1, 2)
        return down if self.down_bias is None else down + self.down_bias.unsqueeze(1)


def _queued(x: Tensor, counts: Sequence[int], weight: Tensor, bias: Tensor | None) -> Tensor:
    """One matrix product for each expert that has tokens; [T, outputs] in the order of the tokens."""
    biases = [None] * len(weight) if bias is None else bias.unbind()
    parts = zip(x.split(list(counts)), weight.unbind(), biases, counts, strict=True)  # type: ignore[no-untyped-call]
    found = [F.linear(part, one, shift) for part, one, shift, count in parts if count]
    return torch.cat(found) if found else x.new_zeros(0, weight.shape[1])


def route(scores: Tensor, k: int, renormalise: bool = False) -> tuple[Tensor, Tensor]:
    """The best k of scores [..., E]: (gates, experts), both [..., k]. With fewer experts than k, all of them."""
    gates, index = scores.topk(min(k, scores.shape[-1]), dim=-1)
    return (gates / gates.sum(-1, keepdim=True) if renormalise else gates), index


@contextlib.contextmanager
def execution(kind: Execution) -> Iterator[None]:
    """Choose how `mix` runs inside. "auto": sparse, and one op where torch.export traces."""
    global _execution
    before, _execution = _execution, kind
    try:
        yield
    finally:
        _execution = before


def mix(x: Tensor, scores: Tensor, kept: Tensor, weights: ExpertWeights, k: int, renormalise: bool = False) -> Tensor:
    """Σ over each token's best k experts of gate · expert(token). A token whose best experts are gone takes the best
    of those that are left, with the gate that the router gives them.

    Args:
        x: tokens [..., width].
        scores: of every expert that the router knows [..., R], non-negative.
        kept: the router's number of each of the E experts in `weights`, ascending.
    """
    kind = _execution
    if kind == "auto":
        kind = "op" if torch.compiler.is_exporting() else "sparse"
    if kind == "op":
        return _op(x, scores, kept, weights, k, renormalise)
    known = _columns if kind == "fixed" and not torch.compiler.is_exporting() else _selected
    return (
        _RUN[kind](x.flatten(0, -2), known(scores.flatten(0, -2), kept), weights, k, renormalise)
        .to(x.dtype)
        .view(x.shape)
    )


def _selected(scores: Tensor, kept: Tensor) -> Tensor:
    return scores.index_select(-1, kept)


def _columns(scores: Tensor, kept: Tensor) -> Tensor:
    """The same for formats that take slices only; their places are written into the graph."""
    return torch.cat([scores[:, number : number + 1] for number in kept.tolist()], dim=-1)


def dense(x: Tensor, scores: Tensor, weights: ExpertWeights, k: int, renormalise: bool) -> Tensor:
    """Every expert for every token [T, width]; those that were not chosen count nothing."""
    outputs, gates = weights.all(x.unsqueeze(0)), dense_gates(scores, k, renormalise)
    return (outputs * gates.t().unsqueeze(-1)).sum(0)


def dense_gates(scores: Tensor, k: int, renormalise: bool = False) -> Tensor:
    """Gates of all experts [T, E], zero where not chosen. Where all are chosen, no choice is made."""
    if k >= scores.shape[-1]:
        return scores / scores.sum(-1, keepdim=True) if renormalise else scores
    gates, index = route(scores, k, renormalise)
    return torch.zeros_like(scores).scatter(-1, index, gates)


def sparse(x: Tensor, scores: Tensor, weights: ExpertWeights, k: int, renormalise: bool) -> Tensor:
    """Tokens sorted by expert, one matrix product for each expert that has any, and brought back to their places."""
    gates, index = route(scores, k, renormalise)
    order, counts = by_expert(index, len(weights))
    outputs = weights.queued(x.index_select(0, order // index.shape[-1]), counts.tolist())
    return _back(outputs, order, gates)


def _back(outputs: Tensor, order: Tensor, gates: Tensor) -> Tensor:
    """Outputs in the order of the queues, weighted and summed for each token [T, width]."""
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    mixed = outputs.index_select(0, places).view(*gates.shape, outputs.shape[-1])
    return (mixed * gates.unsqueeze(-1)).sum(1)


def by_expert(index: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Choices [T, k] flattened and sorted by expert, earlier tokens first, and how many each expert has: the queues."""
    flat = index.flatten()
    return flat.argsort(stable=True), torch.bincount(flat, minlength=experts)


def batched(x: Tensor, scores: Tensor, weights: ExpertWeights, k: int, renormalise: bool) -> Tensor:
    """Every expert's queue padded to the longest, then batched products [E, longest, width]."""
    gates, index = route(scores, k, renormalise)
    order, counts = by_expert(index, len(weights))
    chosen = index.flatten()[order]
    place = torch.arange(len(order), device=x.device) - (counts.cumsum(0) - counts)[chosen]
    queues = x.new_zeros(len(weights), int(counts.max()), x.shape[-1])
    filled = queues.index_put((chosen, place), x.index_select(0, order // index.shape[-1]))
    return _back(weights.all(filled)[chosen, place], order, gates)


def unrolled(x: Tensor, scores: Tensor, weights: ExpertWeights, k: int, renormalise: bool) -> Tensor:
    """Each expert's tokens by `nonzero`, whose number a traced graph leaves open. Without a choice to make there is
    none in the graph either: all tokens go through all experts."""
    if k >= len(weights):
        return fixed(x, scores, weights, k, renormalise)
    gates, index = route(scores, k, renormalise)
    mixed = torch.zeros_like(x)
    for number in range(len(weights)):
        mine = index == number  # [T, k]
        rows = mine.any(-1).nonzero().squeeze(-1)
        gate = (gates * mine).sum(-1, keepdim=True).index_select(0, rows)
        output = weights.expert(number, x.index_select(0, rows)) * gate
        mixed = mixed.index_put((rows,), output, accumulate=True)
    return mixed


def fixed(x: Tensor, scores: Tensor, weights: ExpertWeights, k: int, renormalise: bool) -> Tensor:
    """One expert after the other for all tokens, where there is no choice to make: plain linear layers.

    Raises:
        ExportError: there is one.
    """
    if k < len(weights):
        raise no_routing("this format", f", and each chooses {k} of {len(weights)}")
    gates = dense_gates(scores, k, renormalise)
    parts = [weights.expert(number, x) * gates[:, number : number + 1] for number in range(len(weights))]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


_RUN = {"dense": dense, "sparse": sparse, "batched": batched, "unrolled": unrolled, "fixed": fixed}


def _op(x: Tensor, scores: Tensor, kept: Tensor, weights: ExpertWeights, k: int, renormalise: bool) -> Tensor:
    w = weights
    result: Tensor = torch.ops.secateur.routed_experts(
        x, scores, kept, w.up, w.down, w.up_bias, w.down_bias, w.glu, k, renormalise, w.activation
    )
    return result


@torch.library.custom_op("secateur::routed_experts", mutates_args=())
def _routed_experts(
    x: Tensor,
    scores: Tensor,
    kept: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    glu: Tensor | None,
    k: int,
    renormalise: bool,
    activation: str,
) -> Tensor:
    weights = ExpertWeights(up, down, up_bias, down_bias, glu, activation)
    known = scores.flatten(0, -2).index_select(-1, kept)
    mixed = sparse(x.flatten(0, -2), known, weights, k, renormalise)
    return mixed.to(x.dtype).view(x.shape)


@_routed_experts.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
