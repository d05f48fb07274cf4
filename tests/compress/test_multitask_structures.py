"""The published multi-task structures: their channels are found, masked equals cut, and what is kept whole says why."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from multitask_models import MODELS, make, named_leaves
from torch import nn
from traces import assert_same, leaves, masked_outputs, outputs, random_keep

from secateur.compress.channel_map import named_tensors
from secateur.compress.dataflow import ChannelGroups, trace
from secateur.workloads.models.hrnet import hrnet18

DEAD = {
    "deeplab": ("auxiliary",),
    "pad_net": ("initial.predict",),
    "mti_net": tuple(f"initial.{scale}.predict" for scale in range(4)),
}
"""Branches that only training needs."""
SINGLE = ("depth", "edges")
"""Tasks whose prediction is one channel, which is no group."""


@functools.cache
def traced(name: str) -> tuple[ChannelGroups, torch.Tensor]:
    model, inputs = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every op has a rule
        return trace(model, inputs), inputs


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("seed", range(2))
def test_all_groups_at_once_masked_equals_cut(name: str, seed: int) -> None:
    groups, inputs = traced(name)
    keep = random_keep(groups.prunable, seed)
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


def test_every_group_alone_masked_equals_cut(name: str) -> None:
    groups, inputs = traced(name)
    for group in groups.prunable:
        keep = {group.name: np.arange(group.channels)[1::2]}
        assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


def test_masking_nothing_is_the_model_and_masking_something_is_not(name: str) -> None:
    groups, inputs = traced(name)
    whole = outputs(make(name)[0], inputs)
    assert_same(masked_outputs(groups, {}, inputs), whole)
    live = [group for group in groups.prunable if not group.name.startswith("auxiliary")]
    for group in live[:: max(1, len(live) // 5)]:
        masked = masked_outputs(groups, {group.name: [0]}, inputs)
        changed = [not torch.equal(one, other) for one, other in zip(whole, masked, strict=True)]
        assert any(changed), group.name


def test_only_predictions_are_kept_whole(name: str) -> None:
    """No structure inside is given up: at least nine tenths of the parameters can go."""
    groups, _ = traced(name)
    for group in groups.values():
        if not group.prunable:
            assert "output of the model" in group.why_not or "meets a tensor of fixed size" in group.why_not, str(group)
    sizes = {name: tensor.numel() for name, tensor in groups.model.named_parameters()}
    named = {id(tensor): name for name, tensor in groups.model.named_parameters()}
    tensors = named_tensors(groups.model)
    reached = {
        named[id(tensors[member.parameter])]
        for group in groups.prunable
        for member in group.members
        if id(tensors[member.parameter]) in named
    }
    assert sum(sizes[name] for name in reached) >= 0.9 * sum(sizes.values())


def test_branches_of_training_are_dead_and_can_be_removed(name: str) -> None:
    groups, inputs = traced(name)
    assert groups.trains
    assert groups.dead == groups.removable == DEAD.get(name, ())
    keep = random_keep(groups.prunable, 3)
    assert_same(outputs(groups.cut(keep, remove_dead=True), inputs), masked_outputs(groups, keep, inputs))


def test_a_cut_model_trains_with_its_auxiliary_outputs(name: str) -> None:
    """Outputs keep their names and shapes in training too, and every parameter that is left gets a gradient."""
    groups, inputs = traced(name)
    whole, small = make(name)[0].train(), groups.cut(random_keep(groups.prunable, 4)).train()
    expected, found = named_leaves(whole(inputs)), named_leaves(small(inputs))
    if name == "two_stage_first":  # its features are an output of the traced part, and keep their width
        assert found["features.0"].shape[1] == 8
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    torch.stack([value.square().mean() for value in found.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_auxiliary_outputs_are_those_of_training_alone(name: str) -> None:
    model, inputs = make(name)
    spoken = set(named_leaves(model.train()(inputs))) - set(named_leaves(model.eval()(inputs)))
    assert {key.split(".")[0] for key in spoken} == {
        "deeplab": {"auxiliary"}, "pad_net": {"initial"}, "mti_net": {"deep_supervision"},
    }.get(name, set())  # fmt: skip


def cut_with(groups: ChannelGroups, filters: str) -> set[str]:
    """The parameters that are cut with the filters of a weight."""
    (found,) = (
        group
        for group in groups.values()
        if any(member.parameter == filters and member.role == "out" for member in group.members)
    )
    return {member.parameter for member in found.members}


def test_trunks_that_a_cross_stitch_mixes_are_cut_together() -> None:
    groups, _ = traced("cross_stitch")
    members = cut_with(groups, "trunks.segmentation.stages.0.0.second.0.weight")
    for task in ("segmentation", "depth", "normals"):
        assert f"trunks.{task}.stages.0.0.second.0.weight" in members
        assert f"trunks.{task}.stages.1.0.first.0.weight" in members
    assert "stitches.0.mixture" in members


def test_trunks_that_a_fusion_reads_are_cut_each_on_its_own() -> None:
    groups, _ = traced("nddr")
    members = cut_with(groups, "trunks.segmentation.stages.0.0.second.0.weight")
    assert {f"fusions.0.reduce.{task}.0.weight" for task in range(3)} <= members
    assert not any(member.startswith("trunks.depth") for member in members)


def test_hrnet18_has_the_published_size() -> None:
    """As timm's hrnet_w18 without its classification head."""
    assert sum(parameter.numel() for parameter in hrnet18().parameters()) == 9_562_260


def test_nothing_above_changed_a_model(name: str) -> None:
    groups, _ = traced(name)
    fresh: nn.Module = make(name)[0]
    assert all(torch.equal(one, groups.model.state_dict()[key]) for key, one in fresh.state_dict().items())
    assert leaves(groups.model(traced(name)[1]))
