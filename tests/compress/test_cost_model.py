"""The analytic costs of any widths equal what counting the cut model gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from traces import NAMES, random_keep, traced

from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.profiles.count import count
from secateur.profiles.graph import capture_tasks
from secateur.profiles.latency.traced import read_graph

SAMPLE = [
    "weight_standardised", "task_argument", "dead_branch", "auxiliary_head", "densenet_small", "grouped_conv",
    "depthwise_multiplier", "transposed_conv", "pixel_shuffle", "pixel_unshuffle", "layer_norm_permute", "vit", "unet",
    "chunk_cat", "vgg_flatten", "channel_shuffle", "squeeze_excite", "write_through_view", "conv1d_net", "two_inputs",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_at_full_width_they_are_the_models_costs(name: str) -> None:
    case = traced(name)
    costs = CostModel(case.groups)
    assert costs.costs(costs.widths({})) == count(case.model, case.inputs, case.tasks).costs


@pytest.mark.parametrize("name", SAMPLE)
def test_at_random_widths_they_are_the_cut_models_costs(name: str) -> None:
    case = traced(name)
    costs = CostModel(case.groups)
    keep = random_keep(case.groups.prunable, 21)
    small = case.groups.cut(keep)
    widths = costs.widths({group: len(kept) for group, kept in keep.items()})
    expected = count(small, case.inputs, case.tasks).costs
    assert costs.costs(widths) == expected
    assert costs.flops(widths) == pytest.approx(expected.flops, rel=1e-12)
    assert costs.params(widths) == expected.params


@pytest.mark.parametrize("name", SAMPLE)
def test_at_random_widths_the_operators_are_those_of_the_cut_model(name: str) -> None:
    case = traced(name)
    costs, keep = CostModel(case.groups), random_keep(case.groups.prunable, 22)
    graphs = capture_tasks(case.groups.cut(keep), case.inputs, case.tasks)
    expected = [replace(step.operator(), name="") for graph in graphs for step in read_graph(graph)]
    found = costs.operators(costs.widths({group: len(kept) for group, kept in keep.items()}))
    assert found == expected
    assert sum(each.macs for each in found) > 0
    assert costs.flops(costs.widths({})) == pytest.approx(costs.costs(costs.widths({})).flops)  # rows were added


class Tied(nn.Module):
    """A weight under two names and a normalisation under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.norm = self.again = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.inner(x)))
        return self.head(torch.relu(self.other(self.again(self.one(x)))))


@pytest.mark.parametrize("batch", [1, 5])
def test_shared_parameters_count_once_and_stay_shared(batch: int) -> None:
    inputs = torch.randn(batch, 6)
    model = Tied().eval()
    groups = trace(model, inputs)
    keep = {"inner": [0, 2, 5]}
    small = groups.cut(keep)
    assert small.one.weight is small.other.weight
    assert small.norm is small.again
    torch.testing.assert_close(small(inputs), groups.mask(keep)(inputs)[""])
    costs = CostModel(groups)
    assert costs.costs(costs.widths({"inner": 3})) == count(small, inputs).costs
