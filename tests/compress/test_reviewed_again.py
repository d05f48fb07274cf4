"""Models of a second review of the dataflow: each was refused, kept whole, or priced wrongly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from squares import tasks
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly

from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.core.task import Workload
from secateur.profiles.count import count

parametrizations = nn.utils.parametrizations


def check(model: nn.Module, inputs: Tensor, prunable: set[int]) -> ChannelGroups:
    """Masked is cut, the analytic costs are those of the cut model, and groups of these sizes can be cut."""
    groups = trace_quietly(model.double().eval(), inputs.double())
    costs = CostModel(groups)
    for seed in range(3):
        keep = random_keep(groups.prunable, seed)
        small = groups.cut(keep)
        assert_same(outputs(small, inputs.double()), masked_outputs(groups, keep, inputs.double()))
        modelled = costs.costs(costs.widths({name: len(kept) for name, kept in keep.items()}))
        counted = count(small, inputs.double()).costs
        assert (modelled.params, modelled.flops) == (counted.params, counted.flops)
    assert {group.channels for group in groups.prunable} == prunable
    return groups


class Tokens(nn.Module):
    """[N, L, 5] → a stream of 24 that some block adds to → [N, L, 2]."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(5, 24), block, nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.block(x))


class Usual(nn.Module):
    """torch's own attention as it is mostly called."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=first)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("first", [True, False])
def test_torchs_attention_in_a_batch_with_weights_asked_for(first: bool) -> None:
    """Samples of a batch were taken for an axis of their own."""
    groups = check(Tokens(Usual(first)), torch.randn(2, 7, 5), {4, 6})
    assert groups.cut(random_keep(groups.prunable, 1)).block.attention.embed_dim < 24


class Linearised(nn.Module):
    """Attention without softmax (Katharopoulos et al., ICML 2020): of a product of two widths one ends."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(24, 60, bias=False), nn.Linear(20, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        values = torch.einsum("blhd,blhm->bhmd", k, v)
        scale = 1 / (torch.einsum("blhd,bhd->blh", q, k.sum(1)) + 1e-6)
        return self.out(torch.einsum("blhd,bhmd,blh->blhm", q, values, scale).flatten(2))


def test_linear_attention() -> None:
    check(Tokens(Linearised()), torch.randn(2, 7, 5), {24, 4, 5})


class FourthRoots(nn.Module):
    """Whisper's attention: queries and keys are both divided by the fourth root of a head's width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.out = 4, nn.Linear(24, 24)
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 24, bias=False), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scale = (q.shape[-1] // self.heads) ** -0.25
        q, k, v = (part.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for part in (q * scale, k * scale, v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_scale_by_a_fourth_root() -> None:
    groups = trace_quietly(Tokens(FourthRoots()).double().eval(), torch.randn(2, 7, 5).double())
    assert {"block.q", "block.v"} <= {group.name.partition("#")[0] for group in groups.prunable}


class Gram(nn.Module):
    """A product of channels with themselves (bilinear pooling): its square is what the next layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read, self.head = nn.Conv2d(3, 6, 1), nn.Linear(36, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2)
        return self.head(self.read((y @ y.mT / y.shape[-1]).flatten(1)).relu())


def test_the_product_of_a_group_with_itself_is_priced_as_a_square() -> None:
    check(Gram(), torch.randn(2, 3, 8, 8), {6, 5})


class Softplus(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


def softplus(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrize.register_parametrization(layer, "weight", Softplus())


class Reparametrised(nn.Module):
    """A convolution and a depthwise one whose weights are computed from others."""

    def __init__(self, way: Callable[[nn.Module], nn.Module], depthwise: bool) -> None:
        super().__init__()
        self.stem, self.head = way(nn.Conv2d(3, 12, 3)), nn.Conv2d(14, 2, 1)
        self.deep, self.wide = way(nn.Conv2d(12, 12, 3, groups=12 if depthwise else 1)), way(nn.Conv2d(12, 14, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.deep(self.stem(x).relu()).relu()).relu())


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("way", [softplus, parametrizations.weight_norm])
def test_parametrised_layers_say_their_new_sizes(way: Callable[[nn.Module], nn.Module], depthwise: bool) -> None:
    groups = check(Reparametrised(way, depthwise), torch.randn(2, 3, 8, 8), {12, 14})
    assert all(".parametrizations" not in group.name for group in groups.prunable)
    small = groups.cut(random_keep(groups.prunable, 2))
    for layer in (small.stem, small.deep, small.wide):
        assert (layer.out_channels, layer.in_channels) == (layer.weight.shape[0], layer.weight.shape[1] * layer.groups)


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_bounded_norm_whose_weights_change_when_they_are_read_in_training(training: bool) -> None:
    model = Reparametrised(parametrizations.spectral_norm, depthwise=False).train(training)
    groups = trace_quietly(model, torch.randn(2, 3, 8, 8))
    assert {group.channels for group in groups.prunable} == {12, 14}
    keep = random_keep(groups.prunable, 1)
    small = groups.cut(keep)
    assert_same(outputs(small, torch.ones(2, 3, 8, 8)), masked_outputs(groups, keep, torch.ones(2, 3, 8, 8)))


class Scan(nn.Module):
    """A recurrence over steps whose state takes its size from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(24, 14), nn.Linear(24, 14)
        self.out = nn.Linear(14, 24)

    def forward(self, x: Tensor) -> Tensor:
        gates, values = self.gate(x).sigmoid(), self.value(x)
        state, states = torch.zeros(gates.shape[0], gates.shape[2], dtype=x.dtype), []
        for gate, value in zip(gates.unbind(1), values.unbind(1), strict=True):
            state = gate * state + (1 - gate) * value
            states.append(state)
        return self.out(torch.stack(states, 1))


def test_a_state_of_zeros_that_takes_its_size_from_a_tensor() -> None:
    check(Tokens(Scan()), torch.randn(2, 4, 5), {24, 14})


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.old, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(9), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def test_what_the_forward_does_not_run_is_no_group() -> None:
    groups = trace_quietly(Unused().eval(), torch.randn(2, 3, 4, 4))
    assert list(groups) == ["stem", "head"]


class InTheBatch(nn.Module):
    """Groups of channels go into the batch by a `view` (SGE, shuffle attention): in channels-last layout one sample
    takes it, and several do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.groups = nn.Conv2d(3, 16, 3, padding=1), 4
        self.quadrant, self.brightness = nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        grouped = y.view(len(y) * self.groups, -1, *y.shape[2:])
        grouped = grouped * grouped.mean((2, 3), keepdim=True).sigmoid()
        pooled = grouped.view(*y.shape).relu().mean((2, 3))
        return {"quadrant": self.quadrant(pooled), "brightness": self.brightness(pooled)}


def test_a_layout_is_tried_on_a_whole_batch() -> None:
    from squares import batches

    data: Any = batches(1, 2)
    model = InTheBatch()
    workload = Workload("grouped", InTheBatch().eval(), torch.randn(1, 3, 8, 8), tasks(), data, data, data)
    curve = finetune(model, workload, Recipe(1), seed=0, label="", journal=Journal(None, {}, resume=False))
    assert len(curve) == 1
