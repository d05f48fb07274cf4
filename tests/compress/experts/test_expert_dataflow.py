"""Experts, their hidden width and the embedding are channels: masked equals cut, and the costs are those by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moe_models import PATCH, SIZE, m3vit

from secateur.compress.dataflow import ChannelGroups, trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.experts.cutting import group_of
from secateur.compress.experts.layers import find
from secateur.compress.slimmable.space import Space
from secateur.compress.slimmable.stages import Rule
from secateur.profiles.count import count

TOKENS = (SIZE // PATCH) ** 2 + 1


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    torch.manual_seed(0)
    return trace(m3vit(), torch.rand(2, 3, SIZE, SIZE), ("depth",))


def names_of(groups: ChannelGroups, path: str = "blocks.1.mlp") -> dict[str, str]:
    members = {(m.parameter, m.dim): name for name, group in groups.items() for m in group.members}
    up = f"{path}.experts.htoh4.weight"
    return {"experts": members[up, 0], "hidden": members[up, 1], "embedding": members[up, 2]}


@pytest.mark.parametrize("kind", ["experts", "hidden", "embedding"])
def test_masked_equals_cut(groups: ChannelGroups, kind: str) -> None:
    name = names_of(groups)[kind]
    assert groups[name].prunable, groups[name].why_not
    keep = {name: np.arange(groups[name].channels)[1::2]}
    x = torch.rand(2, 3, SIZE, SIZE)
    small = groups.cut(keep).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(x, "depth"), next(iter(groups.mask(keep)(x).values())), atol=1e-5, rtol=1e-4)


def test_experts_are_cut_in_all_stacked_weights_and_the_router_stays_whole(groups: ChannelGroups) -> None:
    layer = find(groups.model)[0]
    small = groups.cut({group_of(groups, layer): [0, 2, 5]})
    mixture = small.get_submodule(layer.path)
    assert mixture.experts.htoh4.weight.shape == (3, 16, 16)  # type: ignore[union-attr]
    assert mixture.experts.h4toh.bias.shape == (3, 16)  # type: ignore[union-attr]
    assert mixture.kept.tolist() == [0, 2, 5]  # type: ignore[operator, union-attr]
    assert mixture.router.gates["depth"].weight.shape == (6, 16)  # type: ignore[union-attr, index]


def test_only_the_chosen_experts_cost_flops() -> None:
    model, x = m3vit(), torch.zeros(1, 3, SIZE, SIZE)
    layers = {layer.name: layer for layer in count(model, x, ("depth",)).layers}
    assert layers["blocks.1.mlp"].flops == 2 * TOKENS * 2 * (16 * 16 + 16 * 16)  # 2 FLOPs, k = 2, up and down
    for mixture in (model.blocks[1].mlp, model.blocks[3].mlp):
        mixture.slots.resize_(6)
    dense = {layer.name: layer for layer in count(model, x, ("depth",)).layers}
    assert dense["blocks.1.mlp"].flops == 3 * layers["blocks.1.mlp"].flops


def test_the_cost_model_prices_what_counting_finds_after_the_cut(groups: ChannelGroups) -> None:
    names = names_of(groups)
    keep = {names["experts"]: [0, 1, 4], names["hidden"]: list(range(10)), names["embedding"]: list(range(12))}
    costs = CostModel(groups)
    predicted = costs.costs(costs.widths({name: len(kept) for name, kept in keep.items()}))
    assert predicted == count(groups.cut(keep), torch.zeros(1, 3, SIZE, SIZE), ("depth",)).costs


def test_elastic_experts_become_narrower_and_stay_as_many(groups: ChannelGroups) -> None:
    names = names_of(groups)
    elastic = {name for stage in Space.of(groups, ("depth",)).stages for name in stage.channels}
    assert names["hidden"] in elastic
    assert not elastic & {names["experts"], names["embedding"]}
    every = {
        name
        for stage in Space.of(groups, ("depth",), Rule(per_group=True, stream=True)).stages
        for name in stage.channels
    }
    assert set(names.values()) <= every
