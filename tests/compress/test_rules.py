"""What an op does to channels: refusals that name op and module, a user's own rule, outputs, single channels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, traced
from zoo import ZOO

from secateur.compress.dataflow import Labels, Op, rule, trace
from secateur.compress.dataflow.rules import registry
from secateur.core.errors import ModelError


def test_an_op_without_a_rule_is_named_with_its_module_and_keeps_its_channels() -> None:
    inputs = torch.randn(2, 3, 6, 6)
    with pytest.warns(UserWarning, match="no rule for the op wave in the model") as found:
        groups = trace(Waving().eval(), inputs)
    assert len(found) == 1
    assert groups["stem"].why_not == "no rule for the op wave in the model"
    with pytest.raises(ValueError, match="group stem is not prunable: no rule"):
        groups.cut({"stem": [0, 1]})


def test_a_transform_over_the_channels_keeps_them_and_says_why() -> None:
    model, inputs = ZOO["fft"]()
    groups = trace(model, inputs)
    assert groups["stem.0"].why_not == "a transform runs along it (fft_fft in middle)"


def test_the_channels_beside_an_op_without_a_rule_stay_prunable() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.before, self.after = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(wave(self.before(torch.relu(self.stem(x))), 2.0))

    inputs = torch.randn(2, 3, 4, 4)
    with pytest.warns(UserWarning, match="wave"):
        groups = trace(Beside().eval(), inputs)
    assert [group.name for group in groups.prunable] == ["stem"]
    keep = {"stem": [1, 4, 6]}
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


@torch.library.custom_op("secateur_tests::wave", mutates_args=())
def wave(x: Tensor, strength: float) -> Tensor:
    return torch.sin(x * strength)


@wave.register_fake
def _(x: Tensor, strength: float) -> Tensor:
    return torch.empty_like(x)


class Waving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(wave(self.stem(x), 2.0))


@pytest.fixture
def own_rules() -> Iterator[None]:
    before = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(before)
    registry._COUNTING.intersection_update(before)


def test_a_users_op_becomes_prunable_by_a_rule(own_rules: None) -> None:
    model, inputs = Waving().eval(), torch.randn(2, 3, 6, 6)
    with pytest.warns(UserWarning, match="no rule for the op wave in the model"):
        assert not trace(model, inputs).prunable

    @rule("wave")
    def elementwise(op: Op) -> Labels:
        assert op["strength"] == 2.0
        return op.labels("x")

    groups = trace(model, inputs)
    keep = {"stem": [0, 3, 7]}
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


class Projecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight, self.head = nn.Linear(3, 8), nn.Parameter(torch.randn(12, 8)), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(project(self.stem(x), self.weight).softmax(1))


@torch.library.custom_op("secateur_tests::project", mutates_args=())
def project(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


@project.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@pytest.mark.parametrize("says", [True, False])
def test_a_users_rule_says_what_a_weight_makes(own_rules: None, says: bool) -> None:
    @rule("project")
    def projection(op: Op) -> Labels:
        weight = op.labels("weight")
        op.tie(op.labels("x").get(1), weight.get(1))
        if says:
            op.weight("weight", makes=[0], reads=[1])
        return {1: weight[0]}

    model, inputs = Projecting().eval(), torch.randn(5, 3)
    if says:
        groups, keep = trace(model, inputs), {"weight": [0, 3, 7], "stem": [1, 2]}
        assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))
    else:
        with pytest.warns(UserWarning, match=r"op project in the model does not say .* \(op.weight\)"):
            assert "weight" not in trace(model, inputs)


def test_a_users_rule_says_that_its_op_counts_channels(own_rules: None) -> None:
    """A mean over the channels depends on how many there are: masks run it on those that stay."""

    @rule("centre", counting=True)
    def centred(op: Op) -> Labels:
        return op.labels("x")

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(centre(self.stem(x)))

    inputs = torch.randn(5, 3)
    groups, keep = trace(Centred().eval(), inputs), {"stem": [0, 3, 7]}
    assert groups["stem"].prunable
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


@torch.library.custom_op("secateur_tests::centre", mutates_args=())
def centre(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@centre.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_wrong_rule_is_caught_by_the_trial_cut(own_rules: None) -> None:
    """Channel i of cumsum depends on all before it; a rule that calls it pointwise promises another result."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.roll(self.stem(x), 1, dims=1))

    @rule("roll")
    def wrong(op: Op) -> Labels:
        return op.labels("self")

    groups = trace(Normed().eval(), torch.randn(2, 3, 6, 6))
    assert groups["stem"].why_not.startswith("a trial cut failed: output")


def test_outputs_keep_their_size_and_say_why() -> None:
    groups = traced("two_heads").groups
    assert groups["segmentation.1"].why_not == "output of the model (segmentation)"
    assert groups["depth.0.0"].prunable


def test_a_single_channel_is_no_group() -> None:
    """An output or attention map of one channel has nothing to remove, and does not tie its neighbours."""
    groups = traced("attention_map").groups
    assert all("map" not in member.parameter or member.role == "in" for g in groups.prunable for member in g.members)


def test_sizes_that_the_code_fixes_are_found_by_a_trial_cut() -> None:
    groups = traced("split_unequal").groups
    assert groups["stem.0"].why_not.startswith("a trial cut failed: RuntimeError: split_with_sizes")
    assert groups["large.0"].prunable


def test_a_write_through_a_view_is_followed() -> None:
    """The graph of such a model shows no flow from the write to later readers of the whole tensor."""
    case = traced("write_through_view")
    members = {(m.parameter, m.dim) for g in case.groups.prunable for m in g.members if g.name == "middle.layer"}
    assert ("middle.gain", 0) in members
    assert case.groups.dead == ()


def test_a_group_norm_over_single_channels_loses_groups_with_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    inputs = torch.randn(2, 3, 6, 6)
    groups = trace(model, inputs)
    keep = {"0": [1, 2, 6]}
    small = groups.cut(keep)
    assert (small[1].num_groups, small[1].num_channels) == (3, 3)
    assert_same(outputs(small, inputs), masked_outputs(groups, keep, inputs))


def test_composed_cuts_of_a_grouped_convolution_count_its_groups() -> None:
    """First every group shrinks to one channel, then whole groups go; replayed in one step on the full size."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1)).eval()
    inputs = torch.randn(2, 3, 6, 6)
    groups = trace(model, inputs)
    first = groups.channel_map({group.name: [0] for group in groups.prunable})
    small = groups.cut({group.name: [0] for group in groups.prunable})
    assert (small[1].in_channels, small[1].groups) == (4, 4)
    again = trace(small, inputs)
    keep = {group.name: [1, 3] for group in again.prunable}
    smaller = again.cut(keep)
    first.then(again.channel_map(keep)).apply(model)
    assert (model[1].in_channels, model[1].out_channels, model[1].groups) == (2, 2, 2)
    assert torch.equal(model(inputs), smaller(inputs))


class TestTaskArgument:
    def test_groups_of_all_tasks_are_united(self) -> None:
        case = traced("task_argument")
        assert len(case.groups.graphs) == 2
        members = {m.parameter for m in case.groups["encoder.1.0"].members}
        assert {"segmentation.0.0.weight", "depth.0.0.weight"} <= members

    def test_pruning_the_trunk_keeps_both_heads_working(self) -> None:
        case = traced("task_argument")
        keep = random_keep([case.groups["encoder.0.0"], case.groups["encoder.1.0"]], 3)
        found = outputs(case.groups.cut(keep), case.inputs, case.tasks)
        assert [tensor.shape[1] for tensor in found] == [5, 1]
        assert_same(found, masked_outputs(case.groups, keep, case.inputs))

    def test_without_task_names_it_is_refused(self) -> None:
        model, inputs = ZOO["task_argument"]()
        with pytest.raises(ModelError, match="called one task at a time"):
            trace(model, inputs)


class TestDeadBranches:
    @pytest.mark.parametrize(("name", "dead"), [("dead_branch", "dropped"), ("auxiliary_head", "auxiliary")])
    def test_they_are_listed_and_removed_on_request(self, name: str, dead: str) -> None:
        case = traced(name)
        assert case.groups.dead == case.groups.removable == (dead,)
        keep = random_keep(case.groups.prunable, 4)
        with_dead, without = case.groups.cut(keep), case.groups.cut(keep, remove_dead=True)
        assert not any(path.startswith(dead) for path, _ in without.named_parameters())
        assert any(path.startswith(dead) for path, _ in with_dead.named_parameters())
        for one, other in zip(outputs(with_dead, case.inputs), outputs(without, case.inputs), strict=True):
            assert torch.equal(one, other)
        without.train()(case.inputs)

    def test_what_the_forward_needs_for_its_shape_is_not_removed(self) -> None:
        class Needed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.extra, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = torch.relu(self.stem(x))
                self.extra(x).view(len(x), 5, -1)
                return self.head(x)

        groups = trace(Needed().eval(), torch.randn(2, 3, 4, 4))
        assert groups.dead == ("extra",)
        assert groups.removable == ()

    def test_a_cut_and_a_removal_in_one_map_replay_on_a_fresh_instance(self) -> None:
        case = traced("dead_branch")
        first = case.groups.channel_map(random_keep(case.groups.prunable, 5))
        small = case.fresh()
        first.apply(small)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = trace(small, case.inputs, case.tasks)
        second = again.channel_map({}, remove_dead=True)
        fresh = case.fresh()
        first.then(second).apply(fresh)
        expected = again.cut({}, remove_dead=True)
        for one, other in zip(outputs(fresh, case.inputs), outputs(expected, case.inputs), strict=True):
            assert torch.equal(one, other)


def test_a_model_that_cannot_be_traced_says_so_in_one_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match=r"torch\.export cannot trace the model"):
        trace(Branching(), torch.randn(2, 4))
