"""Cutting every model of the zoo: what masking promises is what cutting gives, and nothing else changes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from traces import (
    NAMES,
    Traced,
    assert_identical,
    assert_same,
    leaves,
    make,
    masked_outputs,
    outputs,
    random_keep,
    trace_quietly,
    traced,
)

from secateur.compress.channel_map import ChannelMap
from secateur.core.inputs import call_model, takes_task

PRUNABLE = [name for name in NAMES if name not in ("fft", "slice_halves", "split_equal")]
"""Those three mix or cut their channels in code, which is found, and leaves nothing to prune."""

AGAIN = [
    "channel_shuffle", "chunk_cat", "conv1d_net", "depthwise_multiplier", "group_norm", "grouped_conv",
    "layer_norm_permute", "pixel_shuffle", "two_heads", "vgg_flatten", "weight_standardised", "write_through_view",
]  # fmt: skip
"""Models whose sizes are bound to each other in some way, for what needs another trace."""

LINEAR = [
    "bias_free", "chunk_cat", "densenet_small", "depthwise_multiplier", "fpn", "grouped_conv", "mobilenet_v2",
    "nested_cat", "parallel_trunks", "pixel_shuffle", "pixel_unshuffle", "residual_projection", "resnet18",
    "shared_module", "squeeze_excite", "task_argument", "two_heads", "two_inputs", "unet", "vgg_flatten",
]  # fmt: skip
"""Models whose ops leave a channel of zeros zero, or whose next layer reads it through zero weights."""


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Traced:
    return traced(request.param)


@pytest.fixture(params=PRUNABLE)
def prunable(request: pytest.FixtureRequest) -> Traced:
    return traced(request.param)


def test_only_the_models_that_fix_their_channels_cannot_be_pruned() -> None:
    assert [name for name in NAMES if traced(name).groups.prunable] == PRUNABLE


def test_masking_nothing_is_the_model_itself(case: Traced) -> None:
    assert_same(masked_outputs(case.groups, {}, case.inputs), outputs(case.fresh(), case.inputs, case.tasks))


@pytest.mark.parametrize("seed", range(3))
def test_all_groups_at_once_masked_equals_cut(prunable: Traced, seed: int) -> None:
    keep = random_keep(prunable.groups.prunable, seed)
    small = prunable.groups.cut(keep)
    assert_same(outputs(small, prunable.inputs, prunable.tasks), masked_outputs(prunable.groups, keep, prunable.inputs))


def test_each_group_alone_masked_equals_cut(prunable: Traced) -> None:
    groups = prunable.groups.prunable
    for group in groups[:: max(1, len(groups) // 6)]:
        for keep in (random_keep([group], 7), {group.name: np.array([group.channels - 1])}):
            small = prunable.groups.cut(keep)
            assert_same(
                outputs(small, prunable.inputs, prunable.tasks), masked_outputs(prunable.groups, keep, prunable.inputs)
            )


def test_channels_count_in_the_outputs(prunable: Traced) -> None:
    """Guards the tests above: were masks without effect, they would compare the model with itself."""
    whole = outputs(prunable.fresh(), prunable.inputs, prunable.tasks)
    for group in prunable.groups.prunable[:4]:
        masked = masked_outputs(prunable.groups, {group.name: [0]}, prunable.inputs)
        changed = any(not torch.allclose(one, other, atol=1e-6) for one, other in zip(whole, masked, strict=True))
        assert changed or group.name.startswith(("dropped", "auxiliary"))


@pytest.mark.parametrize("name", LINEAR)
def test_the_plain_module_with_zeroed_slices_equals_cut(name: str) -> None:
    """Independent of our interpreter: zero the members' slices in a copy of the module and call it."""
    case = traced(name)
    keep = random_keep(case.groups.prunable, 11)
    zeroed = copy.deepcopy(case.model)
    tensors = dict(zeroed.named_parameters(remove_duplicate=False)) | dict(zeroed.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for group_name, kept in keep.items():
            group = case.groups[group_name]
            gone = np.setdiff1d(np.arange(group.channels), kept)
            for member in group.members:
                tensors[member.parameter].index_fill_(member.dim, torch.from_numpy(member.index[gone].ravel()), 0)
    assert_same(outputs(zeroed, case.inputs, case.tasks), outputs(case.groups.cut(keep), case.inputs, case.tasks))


def test_keys_stay_and_every_kept_value_comes_from_the_original(prunable: Traced) -> None:
    keep = random_keep(prunable.groups.prunable, 1)
    small, whole = prunable.groups.cut(keep).state_dict(), prunable.model.state_dict()
    assert list(small) == list(whole)
    for name, tensor in small.items():
        assert torch.isin(tensor, whole[name]).all(), name


def test_size_attributes_agree_with_the_tensors(prunable: Traced) -> None:
    small = prunable.groups.cut(random_keep(prunable.groups.prunable, 2))
    for path, module in small.named_modules():
        for attribute, size in sizes(module).items():
            assert getattr(module, attribute) == size, f"{path}.{attribute}"


def sizes(module: nn.Module) -> dict[str, object]:
    """The size attributes that a module's tensors imply."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return {}
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * module.groups}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        assert weight.shape[0] % module.groups == 0
        return {"in_channels": weight.shape[1] * module.groups, "out_channels": weight.shape[0]}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": len(weight)}
    if isinstance(module, nn.GroupNorm):
        assert len(weight) % module.num_groups == 0
        return {"num_channels": len(weight)}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": tuple(weight.shape)}
    return {"num_parameters": len(weight)} if isinstance(module, nn.PReLU) else {}


def test_the_cut_model_trains_one_step(prunable: Traced) -> None:
    small = prunable.groups.cut(random_keep(prunable.groups.prunable, 3)).train()
    calls = [{"task": task} for task in prunable.tasks] if takes_task(small) else [{}]
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    for kwargs in calls:
        found = leaves(call_model(small, prunable.inputs, **kwargs))
        torch.stack([tensor.float().square().mean() for tensor in found]).sum().backward()
    optimizer.step()
    assert all(torch.isfinite(tensor).all() for tensor in outputs(small, prunable.inputs, prunable.tasks))


@pytest.mark.parametrize("name", AGAIN)
def test_the_cut_model_can_be_traced_and_cut_again(name: str) -> None:
    """And the two channel maps in one, through JSON, make the same model of a fresh instance."""
    prunable = traced(name)
    first = prunable.groups.channel_map(random_keep(prunable.groups.prunable, 4))
    small = prunable.fresh()
    first.apply(small)
    again = trace_quietly(small, prunable.inputs, prunable.tasks)
    keep = random_keep(again.prunable, 5)
    second = again.channel_map(keep)
    smaller = again.cut(keep)
    assert_same(outputs(smaller, prunable.inputs, prunable.tasks), masked_outputs(again, keep, prunable.inputs))

    both = ChannelMap.from_json(json.loads(json.dumps(first.then(second).as_json())))
    replayed = prunable.fresh()
    both.apply(replayed)
    assert_identical(replayed.state_dict(), smaller.state_dict())
    for one, other in zip(
        outputs(replayed, prunable.inputs, prunable.tasks),
        outputs(smaller, prunable.inputs, prunable.tasks),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_cutting_in_place_cuts_the_traced_model() -> None:
    model, inputs = make("two_heads")
    groups = trace_quietly(model, inputs, model.tasks)
    keep = random_keep(groups.prunable, 6)
    expected = groups.cut(keep).state_dict()
    assert groups.cut(keep, inplace=True) is model
    assert_identical(model.state_dict(), expected)


def test_a_model_in_training_mode_is_traced_alike_and_stays_in_it() -> None:
    model, inputs = make("auxiliary_head")
    groups = trace_quietly(model.train(), inputs, model.tasks)
    assert model.training
    assert [group.name for group in groups.prunable] == [g.name for g in traced("auxiliary_head").groups.prunable]


def test_nothing_of_all_this_changed_the_original(case: Traced) -> None:
    """Runs last: after tracing, masking and cutting, the traced model still has the bits of a fresh instance."""
    keep = random_keep(case.groups.prunable, 8)
    masked_outputs(case.groups, keep, case.inputs)
    case.groups.cut(keep)
    assert_identical(case.model.state_dict(), case.fresh().state_dict())
    assert not case.model.training
