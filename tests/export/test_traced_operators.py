"""Operators read from the trace are those of the exported file: a model need not be exported to be predicted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.profiles.graph import capture
from secateur.profiles.latency import Operator, read_onnx
from secateur.profiles.latency.traced import Step, read_graph


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
    named = tuple(Task(name, nn.functional.mse_loss, None, "lower") for name in tasks)  # type: ignore[arg-type]
    workload = Workload("w", model.eval(), inputs, named, train=[], calibration=[], test=[])
    steps = read_graph(capture(model, inputs))
    return [step.operator() for step in steps], read_onnx(to_onnx(model, workload, path / "model.onnx"))


def described(found: list[Operator], kinds: tuple[str, ...] = ()) -> Counter[object]:
    keep = [each for each in found if not kinds or each.kind in kinds]
    return Counter(
        (e.kind, e.macs, e.weights, e.elements_in, e.output, e.kernel, e.stride, e.dilation, e.groups, e.function)
        for e in keep
    )


def by_size(steps: list[Step]) -> list[tuple[object, ...]]:
    found = [step.operator() for step in steps]
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


def test_the_batch_of_the_trace_does_not_matter() -> None:
    for model in (Branches().eval(), Tokens().eval()):
        one, many = (read_graph(capture(model, torch.randn(size, 3, 16, 16))) for size in (1, 5))
        assert by_size(one) == by_size(many)
