"""The elastic model at a configuration is the static model cut to it, bit for bit, on every model of the zoo."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from traces import NAMES, Traced, assert_identical, assert_same, leaves, outputs, traced

from secateur.compress.dataflow.groups import Groups
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.sort import order, permute, sort_channels
from secateur.compress.slimmable.space import Configuration, Space
from secateur.compress.slimmable.stages import Rule
from secateur.core.inputs import call_model, takes_task

CONFIGURATIONS = 4


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Traced:
    found = traced(request.param)
    if not found.groups.prunable:
        pytest.skip("this model fixes its channels in code")
    return found


def space_of(case: Traced, **rule: object) -> Space:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small groups have fewer widths
        return Space.of(case.groups, case.tasks or ("output",), Rule(**{"round_to": 2, "neck": False, **rule}))


def sorted_model(case: Traced, space: Space, criterion: str = "l1") -> nn.Module:
    model = copy.deepcopy(case.model)
    names = list(space.channels(space.largest))
    sort_channels(model, case.groups, names, case.inputs, case.tasks, criterion)
    return model


def some(space: Space, seed: int = 0) -> list[Configuration]:
    draw = np.random.default_rng(seed)
    return [space.largest, space.smallest, *(space.random(draw) for _ in range(CONFIGURATIONS - 2))]


@torch.no_grad()
def run(elastic: ElasticModel, configuration: Configuration, case: Traced) -> list[Tensor]:
    subnet = elastic.at(configuration)
    calls = [{"task": task} for task in case.tasks] if takes_task(subnet) else [{}]
    return [leaf for kwargs in calls for leaf in leaves(call_model(subnet, case.inputs, **kwargs))]


def test_elastic_is_the_cut_static_model_bit_for_bit(case: Traced) -> None:
    space = space_of(case)
    model = sorted_model(case, space)
    elastic = ElasticModel(copy.deepcopy(model), space)
    for configuration in some(space):
        cut = copy.deepcopy(model)
        case.groups.channel_map(space.keep(configuration)).apply(cut)
        expected = outputs(cut, case.inputs, case.tasks)
        for found in (
            run(elastic, configuration, case),
            outputs(elastic.static(configuration), case.inputs, case.tasks),
        ):
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert_identical(elastic.static(configuration).state_dict(), cut.state_dict())
    assert_identical(elastic.model.state_dict(), model.state_dict())


def test_groups_on_their_own_are_elastic_too(case: Traced) -> None:
    space = space_of(case, per_group=True, widths=(0.5, 0.9))
    assert all(len(stage.channels) == 1 for stage in space.stages)
    elastic = ElasticModel(copy.deepcopy(case.model), space)
    configuration = some(space, 1)[-1]
    expected = outputs(case.groups.cut(space.keep(configuration)), case.inputs, case.tasks)
    found = run(elastic, configuration, case)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_private_norms_start_as_the_shared_ones(case: Traced) -> None:
    space = space_of(case, widths=(0.5,))
    shared = ElasticModel(copy.deepcopy(case.model), space)
    private = ElasticModel(copy.deepcopy(case.model), space, private=True)
    for configuration in some(space, 2):
        for one, other in zip(run(shared, configuration, case), run(private, configuration, case), strict=True):
            assert torch.equal(one, other)


def test_sorting_leaves_the_outputs_equal(case: Traced) -> None:
    space = space_of(case)
    model = sorted_model(case, space)
    assert_same(outputs(model, case.inputs, case.tasks), outputs(case.fresh(), case.inputs, case.tasks))


def test_any_order_leaves_the_outputs_equal_unless_order_matters(case: Traced) -> None:
    """A harder case than importance: the reversed order moves every channel."""
    model = copy.deepcopy(case.model)
    groups = [group for group in case.groups.prunable if case.name != "cumsum"]
    permute(model, case.groups, {group.name: torch.arange(group.channels).flip(0) for group in groups})
    assert_same(outputs(model, case.inputs, case.tasks), outputs(case.fresh(), case.inputs, case.tasks))


def test_a_group_whose_order_matters_is_left_alone() -> None:
    case = traced("cumsum")
    space = space_of(case)
    model = copy.deepcopy(case.model)
    stayed = sort_channels(model, case.groups, list(case.groups), case.inputs)
    assert len(stayed) >= 1
    assert_same(outputs(model, case.inputs), outputs(case.fresh(), case.inputs))
    assert set(stayed) <= set(case.groups)
    assert space.stages


def test_the_channels_that_others_read_most_come_first() -> None:
    case = traced("two_heads")
    group = next(group for group in case.groups.prunable if group.name.startswith("segmentation"))
    (reader,) = (member for member in group.members if member.role == "in")
    model = copy.deepcopy(case.model)
    permute(model, Groups([group]), {group.name: order(group, dict(model.named_parameters()))})
    read = dict(model.named_parameters())[reader.parameter].abs().sum((0, 2, 3))
    assert torch.equal(read, read.sort(descending=True).values)


def test_taylor_orders_by_the_change_of_the_loss() -> None:
    case = traced("two_heads")
    group = next(group for group in case.groups.prunable if group.name.startswith("depth"))
    (reader,) = (member for member in group.members if member.role == "in")
    model = copy.deepcopy(case.model)
    weights = dict(model.named_parameters())
    model(case.inputs)["depth"].square().mean().backward()
    gradients = {name: tensor.grad for name, tensor in weights.items() if tensor.grad is not None}
    found = order(group, weights, gradients)
    slope = (weights[reader.parameter] * gradients[reader.parameter]).sum((0, 2, 3)).abs()
    assert torch.equal(found, slope.double().argsort(descending=True))


def test_gradients_reach_the_full_weights_and_only_the_kept_channels() -> None:
    case = traced("two_heads")
    space = space_of(case)
    elastic = ElasticModel(copy.deepcopy(case.model), space)
    subnet = elastic.at(space.smallest, training=True)
    found = subnet(case.inputs)
    (found["depth"].sum() + found["segmentation"].sum()).backward()
    weight = dict(elastic.model.named_parameters())["encoder.0.0.weight"]
    kept = space.channels(space.smallest)["encoder.0.0"]
    assert weight.grad is not None
    assert weight.grad[:kept].abs().sum() > 0
    assert weight.grad[kept:].abs().sum() == 0


def test_training_a_subnet_leaves_the_shared_statistics_alone() -> None:
    case = traced("two_heads")
    space = space_of(case)
    elastic = ElasticModel(copy.deepcopy(case.model), space)
    before = {name: tensor.clone() for name, tensor in elastic.model.named_buffers()}
    elastic.at(space.smallest, training=True)(case.inputs)
    assert_identical(dict(elastic.model.named_buffers()), before)
    elastic.at(space.largest, training=True)(case.inputs)
    assert not torch.equal(elastic.model.encoder[0][1].running_mean, before["encoder.0.1.running_mean"])
