"""Every registered rule, between two convolutions, on random sizes and random choices of channels: masked == cut.

A rule that is not met by any case fails the last test, so that a new rule brings its case.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly
from zoo.registry import randomise

from secateur.compress.dataflow import ChannelGroups, Labels, Op, rule, trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.dataflow.rules import contraction, find_rule, registry, rules
from secateur.profiles.count import count
from secateur.profiles.graph import op_name

SIZE = 6
Middle = Callable[[Tensor], Tensor]


def scatter(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, : x.shape[1] // 2] += 1
    return x


def first_line_zero(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, :, 0] = 0
    return x


def stacked(x: Tensor) -> Tensor:
    return torch.vstack([torch.hstack([x, x.sin()])]) + torch.dstack([x, x])[:, :, :SIZE].repeat(1, 2, 1, 1)


def blur(x: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 1, 3).repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(x, kernel, groups=x.shape[1])


def ones(x: Tensor) -> Tensor:
    return torch.ones(1, SIZE**2, SIZE**2).expand(len(x), -1, -1)


def words(x: Tensor) -> Tensor:
    return x * x.mean((2, 3)).softmax(1)[:, :, None, None]


CASES: dict[str, Callable[[int], Middle]] = {
    "pointwise": lambda c: lambda x: F.silu(x) * torch.sigmoid(x) + torch.zeros_like(x),
    "sizes_only": lambda c: lambda x: x * x.new_empty(()).fill_(2),
    "prelu": nn.PReLU,
    "batch_norm": nn.BatchNorm2d,
    "group_norm": lambda c: nn.GroupNorm(2, c),
    "layer_norm": lambda c: LastDimension(nn.LayerNorm(c)),
    "rms_norm": lambda c: LastDimension(nn.RMSNorm(c)),
    "along_a_dimension": lambda c: words,
    "reduction": lambda c: lambda x: x * x.mean(1, keepdim=True) + x.amax((2, 3), keepdim=True),
    "pick": lambda c: lambda x: x * (x.argmax(3, True) + 1) + x.median(2, True)[0] + x.quantile(0.5, 3, True),
    "ordered": lambda c: lambda x: x.topk(2, 3)[0].sort(2)[0] + x.cummax(3)[0][..., :2],
    "gather": lambda c: lambda x: x.gather(2, x.argsort(2)) + x.gather(3, x.mean(1, True).argsort(3).expand_as(x)),
    "scatter": lambda c: lambda x: x.scatter_add(2, x[:, :, :2].argsort(2), x[:, :, 2:4]),
    "select_scatter": lambda c: first_line_zero,
    "cat_along": lambda c: stacked,
    "outer": lambda c: lambda x: x * torch.outer(x[0].mean((1, 2)), torch.arange(6.0))[None, :, None],
    "tensordot": lambda c: Contracted(c),
    "convolution, one kernel for all": lambda c: blur,
    "spatial": lambda c: lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2, mode="bilinear"),
    "grid_sample": lambda c: lambda x: F.grid_sample(x, torch.zeros(len(x), 4, 4, 2), align_corners=False),
    "pad": lambda c: lambda x: F.pad(x, (1, 1, 0, 1, 2, 1)),
    "pixel_shuffle": lambda c: lambda x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2),
    "pixel_unshuffle": lambda c: lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda c: lambda x: F.channel_shuffle(x, 2),
    "reshape": lambda c: lambda x: x.flatten(2).unsqueeze(1).view(len(x), -1, SIZE, SIZE),
    "permute": lambda c: lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "transpose": lambda c: lambda x: x.transpose(1, 3).transpose(3, 1),
    "t": lambda c: lambda x: x * x.mean((2, 3)).t().t()[:, :, None, None],
    "movedim": lambda c: lambda x: x.movedim(1, -1).movedim(-1, 1),
    "expand": lambda c: lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, SIZE, SIZE),
    "repeat": lambda c: lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda c: lambda x: x.repeat_interleave(2, 1),
    "cat": lambda c: lambda x: torch.cat([x, torch.relu(x), x.sin()], 1),
    "stack": lambda c: lambda x: torch.stack([x, torch.relu(x)], 1).sum(1),
    "split": lambda c: lambda x: (lambda halves: torch.cat([halves[1], halves[0] * 2], 1))(x.chunk(2, 1)),
    "slice_": lambda c: lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :],
    "slice_scatter": lambda c: scatter,
    "select": lambda c: lambda x: x[:, :, 1][:, :, None],
    "unbind": lambda c: lambda x: x.unbind(2)[0][:, :, None] * 2,
    "flip": lambda c: lambda x: torch.roll(x, (1, 2), (2, 3)).flip(3),
    "index": lambda c: lambda x: x[:, :, [0, 2, 1]],
    "index_select": lambda c: lambda x: x.index_select(3, torch.tensor([2, 0])),
    "unfold": lambda c: lambda x: x.unfold(2, 2, 2).sum(-1),
    "im2col": lambda c: lambda x: F.unfold(x, 3)[..., None],
    "col2im": lambda c: lambda x: F.fold(F.unfold(x, 2), (SIZE, SIZE), 2),
    "transform": lambda c: lambda x: torch.fft.fft2(x).real,
    "matrix_transpose": lambda c: lambda x: (x.flatten(2).mT * 2).mT[..., None],
    "complex_numbers": lambda c: lambda x: torch.view_as_real(torch.fft.rfft2(x)).flatten(3),
    "triangle": lambda c: lambda x: x.tril(),
    "einsum": lambda c: lambda x: torch.einsum("nc...,nd,nc->nd...", x, x.mean((2, 3)), torch.einsum("...hw->...", x)),
    "matmul": lambda c: lambda x: (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x),
    "addmm": lambda c: lambda x: torch.baddbmm(x.flatten(2), x.flatten(2), ones(x))[..., None],
    "attention": lambda c: lambda x: F.scaled_dot_product_attention(
        *[x.flatten(2).mT[:, None]] * 3
    )[:, 0].mT[..., None],
    "convolution": lambda c: nn.Conv2d(c, 2 * c, 3, groups=c),
    "transposed_convolution": lambda c: nn.ConvTranspose2d(c, 5, 3),
    "transposed_convolution, depthwise": lambda c: nn.ConvTranspose2d(c, c, 4, 2, groups=c),
    "transposed_convolution, two of each": lambda c: nn.ConvTranspose2d(c, 2 * c, 3, groups=c),
    "transposed_convolution, grouped": lambda c: nn.ConvTranspose2d(c, 6, 3, groups=2),
    "glu": lambda c: lambda x: F.glu(torch.cat([x, x.sin()], 1), 1),
    "linear": lambda c: LastDimension(nn.Linear(c, 7)),
    "embedding": lambda c: Words(c),
    "recurrent": lambda c: Steps(c),
    "weight_norm": lambda c: nn.utils.parametrizations.weight_norm(nn.Conv2d(c, 7, 3, padding=1)),
    "with_vector": lambda c: nn.utils.parametrizations.spectral_norm(nn.Conv2d(c, 7, 3, padding=1)),
    "cell": lambda c: Cells(c, nn.LSTMCell),
}  # fmt: skip
"""Name of the rule → what stands in the middle, for a number of channels."""

ELSEWHERE = {"routed_experts"}
"""Rules with test files of their own."""

WHOLE = {"complex_numbers"}
"""Rules whose case leaves no prunable stem."""


class Contracted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensordot(x, self.weight, dims=([1], [0])).movedim(-1, 1)


class LastDimension(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Words(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.words(torch.ones(len(x), dtype=torch.long))[:, :, None, None]


class Steps(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.GRU(channels, 9, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).mT)[0].mT[..., None]


class Cells(nn.Module):
    """A convolutional LSTM and a cell of torch, which begin with states of zeros and of ones."""

    def __init__(self, channels: int, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.hidden, self.gates = 11, nn.Conv2d(channels + 11, 4 * 11, 3, padding=1)
        self.cell = cell(11, 9)

    def forward(self, x: Tensor) -> Tensor:
        state = cells = x.new_zeros(len(x), self.hidden, SIZE, SIZE)
        scale = torch.ones(len(x), self.hidden, 1, 1)
        for _ in range(2):
            reads, forgets, writes, new = self.gates(torch.cat([x, state], 1)).chunk(4, 1)
            cells = forgets.sigmoid() * cells + reads.sigmoid() * new.tanh() * scale
            state = writes.sigmoid() * cells.tanh()
        pooled = state.mean((2, 3))
        after = self.cell(pooled, self.cell(pooled))
        return (after[0] if isinstance(after, tuple) else after)[..., None, None]


class Between(nn.Module):
    """[N, 3, 6, 6] → [N, 2, ...]: the middle between two convolutions."""

    def __init__(self, middle: Middle, channels: int) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, channels, 1), middle
        width = middle(torch.randn(2, channels, SIZE, SIZE)).shape[1]
        self.head = nn.Conv2d(width, 2, 1)
        for module in self.modules():
            randomise(module)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)))


def between(name: str, channels: int) -> tuple[nn.Module, Tensor, ChannelGroups]:
    torch.manual_seed(channels)
    model, inputs = Between(CASES[name](channels), channels), torch.randn(2, 3, SIZE, SIZE)
    return model, inputs, trace_quietly(model, inputs)


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
@given(half=st.integers(2, 6), seed=st.integers(0, 99))
def test_masked_equals_cut(name: str, half: int, seed: int) -> None:
    model, inputs, groups = between(name, 2 * half)
    assert_same(masked_outputs(groups, {}, inputs), outputs(model, inputs))
    for keep in (random_keep(groups.prunable, seed), {group.name: np.array([0]) for group in groups.prunable}):
        assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


@pytest.mark.parametrize("name", sorted(set(CASES) - WHOLE))
def test_the_stem_can_be_cut(name: str) -> None:
    """A rule that refuses what it should follow would pass the test above."""
    _, _, groups = between(name, 8)
    assert any(group.name.startswith("stem") for group in groups.prunable), [str(group) for group in groups.values()]


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_whose_states_begin_as_zeros_are_cut(cell: type[nn.RNNCellBase]) -> None:
    model, inputs = Between(Cells(8, cell), 8), torch.randn(2, 3, SIZE, SIZE)
    groups = trace_quietly(model, inputs)
    assert sorted(group.channels for group in groups.prunable) == [8, 9, 11]
    keep = {group.name: np.arange(group.channels - 3) for group in groups.prunable}
    cut = groups.cut(keep)
    assert_same(outputs(cut, inputs), masked_outputs(groups, keep, inputs))
    assert (cut.middle.hidden, cut.middle.cell.input_size, cut.middle.cell.hidden_size) == (8, 8, 6)
    costs = CostModel(groups)
    assert costs.costs(costs.widths({name: len(kept) for name, kept in keep.items()})) == count(cut, inputs).costs


def test_every_rule_has_a_case() -> None:
    met = set()
    for name in CASES:
        for node in between(name, 4)[2].graphs[0].nodes:
            found = find_rule(node)
            met |= {found.__name__} if found else set()
            assert found or op_name(node) in ("getitem",) or not node.all_input_nodes, node
    every = {function.__name__ for function in rules().values()} - ELSEWHERE
    assert every - met == set()
    assert contraction.refuse not in rules().values()


def test_the_rule_of_the_docs_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/rules.md: its code block, for the op that it is about."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    text = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "docs/rules.md", "exec"), {"Labels": Labels, "Op": Op, "rule": rule})
    torch.manual_seed(0)
    model, inputs = Between(lambda x: glu_of_mine(x), 8), torch.randn(2, 3, SIZE, SIZE)
    groups = trace(model, inputs)
    assert [group.channels for group in groups.prunable] == [4]
    keep = {groups.prunable[0].name: [0, 3]}
    assert groups.cut(keep).stem.out_channels == 4
    assert_same(outputs(groups.cut(keep), inputs), masked_outputs(groups, keep, inputs))


@torch.library.custom_op("secateur_tests::glu_of_mine", mutates_args=())
def glu_of_mine(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    return left * torch.sigmoid(right)


@glu_of_mine.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:])
