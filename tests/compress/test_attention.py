"""Heads, their width and what the code knows of both: found without hints, cut, attributes rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attention_models import (
    TOKENS,
    WIDTH,
    Around,
    ByHand,
    Constant,
    Einsum,
    FromOutside,
    Fused,
    Grouped,
    Recurrent,
    Torch,
)
from torch import nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly
from zoo.registry import randomise

from secateur.compress.channel_map import ChannelMap
from secateur.compress.dataflow import ChannelGroups
from secateur.compress.dataflow.costs import CostModel
from secateur.core.errors import BundleError
from secateur.profiles.count import count

PRUNABLE: dict[Callable[[], nn.Module], list[int]] = {
    Fused: [24, 4, 6, 4, 6],
    ByHand: [24, 4, 6, 4, 6],
    FromOutside: [4, 6],
    Grouped: [24, 2, 4, 2, 4],
    Torch: [4, 6],
    Einsum: [24, 3, 5, 7, 3, 5, 7],
    Recurrent: [24, 10, 10],
}
"""Channels of the prunable groups: the stream, then heads and widths of each block; tied to the stream where the code
takes the width from it."""


def made(kind: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = Around(kind).eval()
    for module in model.modules():
        randomise(module)
    return model, torch.randn(2, TOKENS, 5)


@pytest.fixture(params=list(PRUNABLE), ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, ChannelGroups]:
    model, inputs = made(request.param)
    return model, inputs, trace_quietly(model, inputs)


@pytest.mark.parametrize("kind", list(PRUNABLE), ids=lambda kind: kind.__name__)
def test_heads_and_their_width_are_groups_of_their_own(kind: Callable[[], nn.Module]) -> None:
    groups = trace_quietly(*made(kind))
    assert sorted(group.channels for group in groups.prunable) == sorted(PRUNABLE[kind])


@pytest.mark.parametrize("seed", range(4))
def test_masked_equals_cut(case: tuple[nn.Module, torch.Tensor, ChannelGroups], seed: int) -> None:
    _, inputs, groups = case
    keep = random_keep(groups.prunable, seed)
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


def test_costs_are_those_of_the_cut_model(case: tuple[nn.Module, torch.Tensor, ChannelGroups]) -> None:
    """Heads times width: the sizes are products of two groups' widths."""
    _, inputs, groups = case
    keep = random_keep(groups.prunable, 9)
    costs = CostModel(groups)
    found = costs.costs(costs.widths({name: len(kept) for name, kept in keep.items()}))
    assert found == count(groups.cut(keep), inputs).costs


def test_the_map_replays_on_a_fresh_instance(case: tuple[nn.Module, torch.Tensor, ChannelGroups]) -> None:
    model, inputs, groups = case
    keep = random_keep(groups.prunable, 5)
    document = json.loads(json.dumps(groups.channel_map(keep).as_json()))
    fresh = made(type(model.blocks[0]))[0]
    ChannelMap.from_json(document).apply(fresh)
    assert torch.equal(fresh(inputs), groups.cut(keep)(inputs))


def test_attributes_follow_and_the_originals_stay() -> None:
    model, inputs = made(Fused)
    groups = trace_quietly(model, inputs)
    heads = next(group for group in groups.prunable if group.channels == 4)
    small = groups.cut({heads.name: [1, 2, 3]})
    assert (small.blocks[0].num_heads, small.blocks[0].head_dim, small.blocks[0].inner) == (3, 6, 18)
    assert small.blocks[0].scale == model.blocks[0].scale
    assert small.blocks[0].qkv.weight.shape == (54, WIDTH)
    assert (model.blocks[0].num_heads, model.blocks[0].inner, small.blocks[1].num_heads) == (4, 24, 4)


def test_a_removed_head_is_the_right_one() -> None:
    """By hand: head h of q, k and v are rows 6h..6h+5 of each third of the fused projection."""
    model, inputs = made(Fused)
    groups = trace_quietly(model, inputs)
    heads = next(group for group in groups.prunable if group.channels == 4)
    kept = groups.channel_map({heads.name: [0, 2, 3]}).kept
    rows = np.setdiff1d(np.arange(72), [start + row for start in (0, 24, 48) for row in range(6, 12)])
    assert kept["blocks.0.qkv.weight"][0].tolist() == rows.tolist()
    assert kept["blocks.0.proj.weight"][1].tolist() == [*range(6), *range(12, 24)]


def test_torchs_own_attention_keeps_its_attributes_consistent() -> None:
    groups = trace_quietly(*made(Torch))
    small = groups.cut({group.name: [0, 2] for group in groups.prunable}).blocks[1].attention
    assert (small.num_heads, small.head_dim, small.embed_dim) == (2, 2, 4)
    assert small.in_proj_weight.shape == (12, 4)


def test_heads_written_in_the_code_stay() -> None:
    groups = trace_quietly(*made(Constant))
    assert not [group for group in groups.prunable if group.channels == 4]
    keep = random_keep(groups.prunable, 3)
    _, inputs = made(Constant)
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


@pytest.mark.parametrize("size", ["4", [4, 4], None, True, -1, 2**40])
def test_a_hostile_attribute_is_refused(size: object) -> None:
    document = {"kept": {}, "shapes": {}, "removed_modules": [], "attributes": {"blocks.0.num_heads": size}}
    model, _ = made(Fused)
    with pytest.raises(BundleError):
        ChannelMap.from_json(document).apply(model)
    assert model.blocks[0].num_heads == 4


@pytest.mark.parametrize(
    "name", ["blocks.0.forward", "blocks.0.qkv", "blocks.7.num_heads", "blocks.0.scale", "nothing"]
)
def test_only_integers_that_are_there_can_be_rewritten(name: str) -> None:
    model, _ = made(Fused)
    with pytest.raises(BundleError):
        ChannelMap(attributes={name: 3}).apply(model)
