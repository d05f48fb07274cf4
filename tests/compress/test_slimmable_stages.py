"""Which groups share a width: found from the graph, whatever the names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from traces import traced

from secateur.compress.dataflow import trace
from secateur.compress.slimmable.space import Space
from secateur.compress.slimmable.stages import Rule, rounded
from secateur.core.errors import BudgetError, ModelError


def stages(name: str, **rule: object) -> dict[str, tuple[str, ...]]:
    """Stage → groups."""
    case = traced(name)
    found = Space.of(case.groups, case.tasks or ("output",), Rule(**{"round_to": 1, **rule})).stages
    return {stage.name: tuple(stage.channels) for stage in found}


@pytest.mark.parametrize("name", ["two_heads", "dead_branch", "auxiliary_head", "task_argument"])
def test_an_encoder_stage_for_each_size_and_one_decoder_for_each_task(name: str) -> None:
    assert stages(name) == {
        "encoder1": ("encoder.0.0",),
        "encoder2": ("encoder.1.0",),
        "segmentation": ("segmentation.0.0",),
        "depth": ("depth.0.0",),
    }


def test_what_two_tasks_depend_on_is_no_decoder() -> None:
    """Depth reads the prediction of segmentation, so segmentation's head is part of the encoder."""
    found = stages("task_guided")
    assert "segmentation" not in found
    assert "segmentation.0.0" in found["encoder2"] + found["encoder1"]
    assert found["depth"] == ("depth.0.0",)


def test_a_single_task_has_an_encoder_only() -> None:
    assert list(stages("resnet18")) == ["encoder1", "encoder2", "encoder3", "encoder4", "encoder5"]


class Attentive(nn.Module):
    """[N, 5, 8] → [N, 5, 3]: attention of three heads of eight, then an MLP, each added to the stream.

    Args:
        outside: the width of a head is taken from the stream's, as many repositories do.
    """

    def __init__(self, *, outside: bool = False) -> None:
        super().__init__()
        self.outside = outside
        self.into, self.out = nn.Linear(8, 24), nn.Linear(24, 3)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.heads = 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        width = x.shape[-1] // self.heads if self.outside else -1
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, width)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2))
        return self.out(x + self.mlp(x))


def attentive(*, outside: bool = False, **rule: object) -> dict[str, dict[str, tuple[int, ...]]]:
    groups = trace(Attentive(outside=outside).eval(), torch.randn(2, 5, 8))
    found = Space.of(groups, ("output",), Rule(**{"widths": (0.25, 0.5, 1.0), "round_to": 1, **rule})).stages
    return {stage.name: dict(stage.channels) for stage in found}


def test_stream_heads_and_what_mlps_hide_have_widths_of_their_own() -> None:
    """Heads go first, their width makes up the difference: a quarter of three heads of eight is one of six."""
    assert attentive(stream=True) == {
        "encoder1": {"into": (6, 12, 24)},
        "encoder1.heads": {"qkv#2": (1, 2, 3), "qkv#3": (6, 6, 8)},
        "encoder1.hidden": {"mlp.0": (12, 24, 48)},
    }


def test_a_stream_keeps_its_width_unless_told_otherwise() -> None:
    assert list(attentive()) == ["encoder1.heads", "encoder1.hidden"]


def test_heads_that_are_the_streams_channels_are_the_stream() -> None:
    assert attentive(outside=True) == {"encoder1": {"mlp.0": (12, 24, 48)}}
    assert attentive(outside=True, stream=True) == {
        "encoder1": {"into": (1, 2, 3), "into#2": (6, 6, 8)},
        "encoder1.hidden": {"mlp.0": (12, 24, 48)},
    }


def test_heads_held_at_their_number_become_narrower() -> None:
    assert attentive(fixed=("qkv#2",))["encoder1.heads"] == {"qkv#3": (2, 4, 8)}


def test_every_group_can_have_a_width_of_its_own() -> None:
    assert attentive(per_group=True, stream=True) == {
        name: {name: counts}
        for name, counts in {
            "into": (6, 12, 24), "qkv#2": (1, 2, 3), "qkv#3": (2, 4, 8), "mlp.0": (12, 24, 48)
        }.items()
    }  # fmt: skip


class Shuffle(nn.Module):
    """[N, 8] → [N, 3]: four sets of six channels, read set by set."""

    def __init__(self) -> None:
        super().__init__()
        self.sets, self.into, self.out = 4, nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x).unflatten(1, (self.sets, -1)).transpose(1, 2).flatten(1))


def test_of_other_products_the_larger_factor_changes_its_width() -> None:
    groups = trace(Shuffle().eval(), torch.randn(2, 8))
    assert sorted(group.channels for group in groups.prunable) == [4, 6]
    (stage,) = Space.of(groups, ("output",), Rule((0.5,), round_to=1)).stages
    assert list(stage.channels.values()) == [(3, 6)]


def test_groups_can_be_held_at_full_width() -> None:
    assert "encoder1" in stages("two_heads", fixed=("encoder.1.*",))
    assert stages("two_heads", fixed=("encoder.*",)).keys() == {"segmentation", "depth"}
    with pytest.raises(BudgetError, match="no channel group matches"):
        stages("two_heads", fixed=("encodr.*",))
    with pytest.raises(ModelError, match="no channel of the model"):
        stages("two_heads", fixed=("*",))


class Neck(nn.Module):
    """A 1×1 convolution between encoder and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.neck = nn.Conv2d(16, 8, 1)
        self.one, self.two = nn.Conv2d(8, 2, 3), nn.Conv2d(8, 1, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.encoder(x)).relu()
        return {"one": self.one(x), "two": self.two(x)}


def test_a_neck_keeps_its_width_unless_told_otherwise() -> None:
    groups = trace(Neck().eval(), torch.randn(2, 3, 8, 8))
    assert [tuple(s.channels) for s in Space.of(groups, ("one", "two")).stages] == [("encoder.0",)]
    loose = Space.of(groups, ("one", "two"), Rule(neck=False)).stages
    assert [tuple(s.channels) for s in loose] == [("encoder.0", "neck")]


def test_channel_counts_are_multiples_of_the_steps_of_a_device() -> None:
    assert [rounded(w, 64, 8) for w in (0.25, 0.5, 0.75, 1.0)] == [16, 32, 48, 64]
    assert [rounded(w, 24, 8) for w in (0.25, 0.5, 0.75, 1.0)] == [8, 12, 20, 24]  # steps of 4 leave it six sizes
    assert rounded(1.0, 21, 8) == 21
    assert [rounded(0.01, 64, 8), rounded(0.01, 3, 8)] == [8, 1]


@pytest.mark.filterwarnings("ignore:some widths of")
def test_widths_that_round_to_the_same_channels_count_as_one() -> None:
    case = traced("two_heads")
    with pytest.warns(UserWarning, match="some widths of encoder1 round to the same channels"):
        space = Space.of(case.groups, case.tasks, Rule((0.25, 0.26, 0.5), round_to=1))
    assert space.stages[0].widths == (0.26, 0.5, 1.0)
    assert space.stages[0].channels == {"encoder.0.0": (2, 4, 8)}


@pytest.mark.parametrize("widths", [(0.0, 0.5), (-1.0,), (1.5,), (1.0,), ()])
def test_nonsense_widths_are_refused(widths: tuple[float, ...]) -> None:
    with pytest.raises(BudgetError):
        Rule(widths)


class CommonHead(nn.Module):
    """[N, 3, 8, 8]: an encoder, a decoder for each task, and one head with a batch norm for both of them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3)
        self.left, self.right = (nn.Sequential(nn.Conv2d(8, 10, 1), nn.ReLU(), nn.Conv2d(10, 6, 1)) for _ in range(2))
        self.join, self.head = nn.Sequential(nn.Conv2d(6, 4, 1), norm), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.encoder(x).relu()
        return {side: self.head(self.join(layer(x).relu())) for side, layer in (("l", self.left), ("r", self.right))}


@pytest.mark.parametrize(("norm", "decoders"), [(nn.BatchNorm2d(4), set()), (nn.GroupNorm(1, 4), {"l", "r"})])
def test_decoders_before_a_batch_norm_of_both_are_chosen_together(norm: nn.Module, decoders: set[str]) -> None:
    """Its statistics depend on the widths of either."""
    groups = trace(CommonHead(norm).eval(), torch.randn(2, 3, 8, 8))
    found = {stage.name for stage in Space.of(groups, ("l", "r"), Rule(round_to=1)).stages}
    assert found & {"l", "r"} == decoders
