"""MACs of single ops: against torch's own counter, against numbers derived by hand, and at widths never traced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode
from zoo.classics import mobilenet_v2, resnet18, unet
from zoo.operators import vit

from secateur.profiles.graph import Graph, capture, shape
from secateur.profiles.macs import mac_terms, node_macs


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def ours(model: nn.Module, *args: Tensor) -> int:
    return sum(node_macs(node) for node in capture(model, args).nodes)


def torchs(model: nn.Module, *args: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*args)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("layer", "input_shape", "macs"),
    [
        pytest.param(nn.Conv2d(8, 16, 3, padding=1), (1, 8, 5, 7), 16 * 5 * 7 * 8 * 9, id="conv"),
        pytest.param(nn.Conv2d(8, 16, 3, stride=2, padding=1), (3, 8, 6, 6), 3 * 16 * 9 * 8 * 9, id="strided"),
        pytest.param(nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 5, 5), 8 * 25 * 9, id="depthwise"),
        pytest.param(nn.Conv2d(8, 16, 3, padding=1, groups=8), (1, 8, 5, 5), 16 * 25 * 9, id="multiplier 2"),
        pytest.param(nn.Conv2d(8, 12, 1, groups=4), (1, 8, 5, 5), 12 * 25 * 2, id="grouped"),
        pytest.param(nn.ConvTranspose2d(8, 6, 4, stride=2), (1, 8, 5, 5), 8 * 25 * 6 * 16, id="transposed"),
        pytest.param(nn.ConvTranspose2d(8, 6, 2, groups=2), (1, 8, 5, 5), 8 * 25 * 3 * 4, id="transposed grouped"),
        pytest.param(nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 5, 5), 4 * 25 * 3 * 9, id="padding by name"),
        pytest.param(nn.Linear(6, 10), (2, 7, 6), 2 * 7 * 6 * 10, id="linear"),
        pytest.param(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)), (1, 8, 4, 4), 0, id="the rest"),
    ],
)
def test_macs_of_a_layer_are_those_derived_by_hand(layer: nn.Module, input_shape: tuple[int, ...], macs: int) -> None:
    assert ours(layer.eval(), torch.randn(input_shape)) == macs


def test_attention_is_two_products_per_head() -> None:
    query, key, value = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 5)
    attend = Function(F.scaled_dot_product_attention)
    assert ours(attend, query, key, value) == 2 * 3 * (6 * 4 * 7 + 6 * 7 * 5)


def test_a_causal_mask_halves_nothing() -> None:
    tokens = torch.randn(1, 2, 8, 4)
    causal = Function(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    assert ours(causal, tokens) == 2 * 2 * 8 * 8 * 4


@settings(max_examples=25)
@given(
    groups=st.sampled_from([1, 2, 3]),
    per_group=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    transposed=st.booleans(),
    bias=st.booleans(),
)
def test_any_convolution_counts_as_in_torch(
    groups: int, per_group: tuple[int, int], kernel: tuple[int, int], stride: int, transposed: bool, bias: bool
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    inputs, outputs = (groups * width for width in per_group)
    layer = kind(inputs, outputs, kernel, stride=stride, groups=groups, bias=bias)
    x = torch.randn(2, inputs, 6, 5)
    assert ours(layer, x) == torchs(layer, x)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.matmul, [(3, 5), (5, 4)]),
        (torch.matmul, [(2, 3, 5), (5, 4)]),
        (torch.matmul, [(6, 2, 3, 5), (2, 5, 4)]),
        (torch.matmul, [(5,), (5, 4)]),
        (torch.mm, [(3, 5), (5, 4)]),
        (torch.bmm, [(2, 3, 5), (2, 5, 4)]),
        (torch.addmm, [(4,), (3, 5), (5, 4)]),
        (torch.baddbmm, [(2, 3, 4), (2, 3, 5), (2, 5, 4)]),
        (lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])), [(2, 3, 5), (3, 5, 4)]),
        (lambda a, b: F.conv2d(input=a, weight=b, padding=1), [(2, 3, 6, 6), (4, 3, 3, 3)]),
        (
            lambda a, b: torch.convolution(a, b, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
            [(2, 3, 6, 6), (3, 4, 3, 3)],
        ),
        (F.conv2d, [(3, 6, 6), (4, 3, 3, 3)]),
    ],
)
def test_functional_products_count_as_in_torch(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    args = [torch.randn(sizes) for sizes in shapes]
    assert ours(Function(function), *args) == torchs(Function(function), *args) > 0


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("bct,bdt->bcd", (2, 3, 5), (2, 4, 5)),
        ("bij,jk->bk", (2, 3, 5), (5, 4)),  # i is summed before the product
        ("bchw,bc->bhw", (2, 3, 4, 4), (2, 3)),
        ("bcij,bcij->bc", (2, 3, 4, 4), (2, 3, 4, 4)),
        ("ij,jk", (3, 5), (5, 4)),
        ("...ij,...jk->...ik", (2, 6, 3, 5), (2, 6, 5, 4)),
        ("...ij,...jk", (2, 6, 3, 5), (2, 6, 5, 4)),
        ("i...,j...->ij", (3, 5), (4, 5)),
        ("bc,bc->bc", (2, 3), (2, 3)),
        ("i,j->ij", (3,), (4,)),
    ],
)
def test_einsum_counts_as_in_torch(equation: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    model, args = Function(lambda a, b: torch.einsum(equation, a, b)), (torch.randn(left), torch.randn(right))
    assert ours(model, *args) == torchs(model, *args)


@pytest.mark.parametrize(
    ("make", "wide", "narrow"),
    [
        (resnet18, {"width": 16}, {"width": 6}),
        (mobilenet_v2, {"width": 0.5}, {"width": 0.25}),
        (unet, {"width": 8}, {"width": 3}),
        (vit, {}, {}),
    ],
)
def test_terms_price_widths_that_were_not_traced(
    make: Callable[..., Any], wide: dict[str, float], narrow: dict[str, float]
) -> None:
    """The terms of the wide model, at the tensor sizes of the narrow one, are the MACs of the narrow one."""
    size = {} if make is vit else {"size": 64}
    wide_graph, narrow_graph = (capture(*make(**options, **size)) for options in (wide, narrow))
    twin = dict(zip(all_nodes(wide_graph), all_nodes(narrow_graph), strict=True))
    priced = [
        term.value(lambda node, dim: shape(twin[node])[dim]) for node in wide_graph.nodes for term in mac_terms(node)
    ]
    assert sum(priced) == sum(node_macs(node) for node in narrow_graph.nodes)


def all_nodes(graph: Graph) -> list[Node]:
    return list(graph.nodes[0].graph.nodes)
