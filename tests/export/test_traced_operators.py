"""Operators read from the trace are those of the exported file: a model need not be exported to be predicted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.core.experts import ExpertWeights, mix
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.profiles.graph import capture
from secateur.profiles.latency import Operator, read_onnx
from secateur.profiles.latency.traced import AnyStep, RoutedStep, operators_of, read_graph
from secateur.profiles.macs import traced_size
from secateur.workloads.metrics import Accuracy


class Branches(nn.Module):
    """What fusion and reading have rules for: norms, gates, groups, resizing, joins, and a step that is done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.wide = nn.Sequential(nn.Conv2d(12, 12, (1, 5), padding=(0, 2), groups=12), nn.BatchNorm2d(12), nn.SiLU())
        self.grouped = nn.Conv2d(12, 20, 3, padding=2, dilation=2, groups=4)
        self.up = nn.ConvTranspose2d(20, 6, 2, 2)
        self.head = nn.Conv2d(18, 2, 1)
        self.kind = nn.Sequential(nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        deep = self.grouped(nn.functional.max_pool2d(features * torch.sigmoid(features) + self.wide(features), 2))
        joined = [torch.cat([nn.functional.interpolate(self.up(deep), scale_factor=1.0), features], 1) for _ in "ab"]
        return {"map": self.head(joined[0]) + self.head(joined[1]), "kind": self.kind(deep.mean((2, 3)))}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.query, self.out = nn.Linear(16, 48), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        query, key, value = self.query(tokens).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return {"kind": self.out(mixed.mean(1))}


def operators(model: nn.Module, tasks: tuple[str, ...], path: Path) -> tuple[list[Operator], list[Operator]]:
    """(of the trace, of the file)."""
    inputs = torch.randn(2, 3, 16, 16)
    named = tuple(Task(name, nn.functional.mse_loss, Accuracy(), "higher") for name in tasks)
    workload = Workload("w", model.eval(), inputs, named, train=[], calibration=[], test=[])
    steps = read_graph(capture(model, inputs))
    return operators_of(steps), read_onnx(to_onnx(model, workload, path / "model.onnx"))


def described(found: list[Operator], kinds: tuple[str, ...] = ()) -> Counter[object]:
    keep = [each for each in found if not kinds or each.kind in kinds]
    return Counter(
        (e.kind, e.macs, e.weights, e.elements_in, e.output, e.kernel, e.stride, e.dilation, e.groups, e.function)
        for e in keep
    )


def by_size(steps: list[AnyStep]) -> list[tuple[object, ...]]:
    found = operators_of(steps)
    return [(each.kind, each.macs, each.elements_in, each.elements_out, each.channels) for each in found]


def test_of_a_convolutional_network_they_are_the_same(tmp_path: Path) -> None:
    traced, written = operators(Branches(), ("map", "kind"), tmp_path)
    assert described(traced) == described(written)
    assert {"swish", "relu"} & {each.function for each in traced} == {"swish"}  # every other is fused
    assert sum(each.kind == "concat" for each in traced) == 1


def test_of_attention_the_products_are_the_same(tmp_path: Path) -> None:
    traced, written = operators(Tokens(), ("kind",), tmp_path)
    kinds = ("conv", "linear", "matmul", "softmax", "layernorm")
    assert [sum(each.macs for each in found) for found in (traced, written)] == [
        pytest.approx(sum(each.macs for each in written))
    ] * 2
    assert Counter(each.kind for each in traced if each.kind in kinds) == Counter(
        each.kind for each in written if each.kind in kinds
    )


class Mixture(nn.Module):
    """Eight tokens of width 6 and, of four experts with 10 hidden channels, the best k."""

    def __init__(self, k: int, gated: bool) -> None:
        super().__init__()
        self.k = k
        self.up, self.down = nn.Parameter(torch.randn(4, 10, 6)), nn.Parameter(torch.randn(4, 6, 10))
        self.glu = nn.Parameter(torch.randn(4, 10, 6)) if gated else None
        self.register_buffer("kept", torch.arange(4))
        self.embed, self.gate = nn.Conv2d(3, 6, (4, 8), (4, 8)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        scores = self.gate(tokens).softmax(-1)
        return {"mixed": mix(tokens, scores, self.kept, ExpertWeights(self.up, self.down, glu=self.glu), self.k)}  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "rows"), [(1, 2), (3, 6), (4, 8)])
@pytest.mark.parametrize("gated", [False, True])
def test_an_expert_works_on_its_share_of_the_tokens(k: int, rows: int, gated: bool, tmp_path: Path) -> None:
    traced, written = operators(Mixture(k, gated), ("mixed",), tmp_path)
    for found in (traced, written):
        products = [each for each in found if each.kind == "linear" and each.weights == 60]
        assert [each.macs for each in products] == [60 * rows] * (12 if gated else 8)
    finding = [sum(each.kind == "reduce" for each in found) for found in (traced, written)]
    assert finding == ([12, 12] if k < 4 else [0, finding[1]])  # nothing is searched where no choice is left


def test_fewer_experts_are_fewer_operators() -> None:
    steps = read_graph(capture(Mixture(1, False), torch.randn(2, 3, 16, 16)))
    (step,) = (each for each in steps if isinstance(each, RoutedStep))
    experts = step.weight[0]
    whole = step.operators()
    half = step.operators(lambda *factor: 2 if factor == experts else traced_size(*factor))
    assert (len(whole), len(half)) == (64, 32)
    assert sum(each.macs for each in whole) == sum(each.macs for each in half)


def test_the_batch_of_the_trace_does_not_matter() -> None:
    for model in (Branches().eval(), Tokens().eval()):
        one, many = (read_graph(capture(model, torch.randn(size, 3, 16, 16))) for size in (1, 5))
        assert by_size(one) == by_size(many)
