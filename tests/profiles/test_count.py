"""Totals, layers and tasks: against torch's counter on every test model, published figures, and sums done by hand."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from secateur.core.errors import ModelError
from secateur.core.inputs import batch_size, call_model, mapped, takes_task
from secateur.profiles.count import CostTable, TaskCost, count, count_graphs
from secateur.profiles.graph import capture

ENCODER = 2 * (16 * 16 * 8 * 3 * 9 + 8 * 8 * 12 * 8 * 9)
SEGMENTATION = 2 * 8 * 8 * (8 * 12 * 9 + 5 * 8)
DEPTH = 2 * 8 * 8 * (6 * 12 * 9 + 1 * 6)
"""FLOPs of the parts of the zoo's two-headed models."""


@functools.cache
def counted(name: str) -> CostTable:
    model, inputs = ZOO[name]()
    return count(model, inputs, getattr(model, "tasks", ()))


def flops_by_torch(model: nn.Module, inputs: Any) -> int:
    """FLOPs of one sample by FlopCounterMode; attention is taken apart, since torch does not count it fused on CPUs."""
    calls: list[dict[str, str]] = [{"task": task} for task in model.tasks] if takes_task(model) else [{}]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for options in calls:
            call_model(model, inputs, **options)
    return counter.get_total_flops() // batch_size(inputs)


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"dead_branch"}))
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    assert counted(name).costs.flops == flops_by_torch(*ZOO[name]()) > 0


@pytest.mark.parametrize("name", sorted(ZOO))
def test_layers_sum_to_the_totals(name: str) -> None:
    table = counted(name)
    assert sum(layer.flops for layer in table.layers) == table.costs.flops
    assert sum(layer.params for layer in table.layers) == table.costs.params
    assert len({layer.name for layer in table.layers}) == len(table.layers)


@pytest.mark.parametrize(
    ("name", "gmacs", "params"),
    [
        ("resnet18", 1.814, 11_689_512),
        ("resnet50", 4.09, 25_557_032),
        ("mobilenet_v2", 0.3008, 3_504_872),
    ],
)
def test_published_figures(name: str, gmacs: float, params: int) -> None:
    """The papers' and model libraries' figures for one image of 224×224."""
    costs = counted(name).costs
    assert costs.macs / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert costs.params == params


@pytest.mark.parametrize("name", ["two_heads", "inplace", "learned_scale", "weight_standardised", "vit", "two_inputs"])
def test_figures_are_per_sample_whatever_the_batch(name: str) -> None:
    model, inputs = ZOO[name]()
    single = mapped(lambda value: value[:1], inputs)
    several = mapped(lambda value: torch.cat([value, value, value[:1]]), inputs)
    assert count(model, single) == count(model, several)


class Queries(nn.Module):
    """Queries of a decoder attend to each other before they see a sample (Carion et al., DETR, ECCV 2020); a state of
    zeros goes through a layer before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.mixing, self.state = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.weight.unsqueeze(0).repeat(len(x), 1, 1)
        queries = self.attention(queries, queries, queries, need_weights=False)[0] + self.mixing(queries)
        state = self.state(torch.zeros(len(x), 8))
        return self.attention(queries, x, x, need_weights=False)[0] * state[:, None]


def test_what_is_repeated_for_each_sample_counts_once_for_each() -> None:
    model, x = Queries().eval(), torch.randn(7, 3, 8)
    assert count(model, x[:1]) == count(model, x)
    by_torch = flops_by_torch(model.train(), x)  # in evaluation, its attention is one call that it does not count
    assert count(model, x).costs.flops == by_torch


def test_a_graph_that_was_traced_before_counts_the_same() -> None:
    model, inputs = ZOO["two_heads"]()
    assert count_graphs([capture(model, inputs)], model, model.tasks) == counted("two_heads")


def test_costs_of_a_small_model_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 10))
    table = count(model, torch.randn(2, 3, 4, 4))
    conv, norm, flatten, linear = table.layers
    assert (conv.name, conv.kind, conv.flops, conv.params) == ("0", "Conv2d", 2 * 16 * 8 * 27, 8 * 27 + 8)
    assert (linear.name, linear.kind, linear.flops, linear.params) == ("3", "Linear", 2 * 128 * 10, 128 * 10 + 10)
    assert conv.activation_bytes == 4 * 8 * 16
    assert conv.bytes_moved == 4 * (3 * 16 + conv.params + 8 * 16)
    assert norm.bytes_moved == 4 * (8 * 16 + 4 * 8 + 8 * 16)
    assert (flatten.activation_bytes, flatten.bytes_moved) == (0, 0)
    assert table.costs.size_bytes == 4 * (conv.params + 4 * 8 + linear.params) + 8  # norm's statistics, its counter
    assert table.costs.peak_memory_bytes == table.costs.size_bytes + 4 * 2 * (8 * 16)  # before and after the norm


def test_a_module_used_twice_is_one_layer_with_its_parameters_once() -> None:
    table = counted("shared_module")
    layer = next(layer for layer in table.layers if layer.name == "shared.0")
    assert layer.flops == 2 * (2 * 16 * 16 * 8 * 8 * 9)
    assert layer.params == 8 * 8 * 9


def test_tied_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(6, 6, bias=False)
            self.decode = nn.Linear(6, 6, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(torch.relu(self.encode(x)))

    table = count(Tied(), torch.randn(1, 6))
    assert (table.costs.params, table.costs.size_bytes) == (36, 144)
    assert table.dead == ()


@pytest.mark.parametrize("name", ["two_heads", "nested_output", "auxiliary_head", "dead_branch", "task_argument"])
def test_a_task_needs_its_head_alone_and_the_encoder_with_others(name: str) -> None:
    assert counted(name).tasks == {
        "segmentation": TaskCost(flops_exclusive=SEGMENTATION, flops_shared=ENCODER),
        "depth": TaskCost(flops_exclusive=DEPTH, flops_shared=ENCODER),
    }


def test_a_model_called_per_task_runs_its_encoder_per_task() -> None:
    assert counted("two_heads").costs.flops == ENCODER + SEGMENTATION + DEPTH
    assert counted("task_argument").costs.flops == 2 * ENCODER + SEGMENTATION + DEPTH
    assert counted("task_argument").costs.peak_memory_bytes == counted("two_heads").costs.peak_memory_bytes


def test_a_prediction_that_feeds_another_task_is_shared() -> None:
    tasks = counted("task_guided").tasks
    assert tasks["segmentation"] == TaskCost(flops_exclusive=0, flops_shared=ENCODER + SEGMENTATION)
    assert tasks["depth"].flops_shared == ENCODER + SEGMENTATION


def test_the_prediction_nearest_to_the_top_is_the_tasks() -> None:
    class Supervised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"intermediate": {"depth": self.early(x)}, "depth": self.late(x)}

    assert count(Supervised(), torch.randn(1, 4), ["depth"]).tasks["depth"].flops == 2 * 4 * 3


def test_an_unknown_task_is_the_users_mistake() -> None:
    model, inputs = ZOO["nested_output"]()
    with pytest.raises(ModelError, match='no prediction for task "normals"') as error:
        count(model, inputs, ["depth", "normals"])
    assert "final.depth" in error.value.hint


@pytest.mark.parametrize(
    ("name", "dead"), [("two_heads", ()), ("auxiliary_head", ("auxiliary",)), ("dead_branch", ("dropped",))]
)
def test_modules_that_no_output_needs_are_dead(name: str, dead: tuple[str, ...]) -> None:
    table = counted(name)
    assert table.dead == dead
    assert table.costs.flops == counted("two_heads").costs.flops
    assert table.costs.params > counted("two_heads").costs.params or not dead


def test_a_model_in_training_is_counted_as_in_evaluation_and_left_in_training() -> None:
    model, inputs = ZOO["auxiliary_head"]()
    model.train()
    model.encoder.eval()
    assert count(model, inputs).dead == ("auxiliary",)
    assert model.training
    assert not model.encoder.training


def test_ops_that_count_nothing_are_listed() -> None:
    assert counted("cumsum").uncounted == {"batch_norm": 1, "relu": 1, "cumsum": 1}
    assert counted("fft").uncounted.keys() >= {"fft_fft"}
    assert counted("vgg_flatten").uncounted == {"relu": 3, "max_pool2d": 2}
