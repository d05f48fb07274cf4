"""Peak memory and traffic of small models, each derived by hand. Images are 8×8 floats: 256 bytes per channel."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from secateur.profiles.graph import capture
from secateur.profiles.memory import moved_bytes, peak_activation_bytes, tensor_bytes

CHANNEL = 8 * 8 * 4


class Net(nn.Module):
    """Convolutions `a` (2 → 8 channels), `b` (8 → 4) and `c` (4 → 8), called as a test says."""

    def __init__(self, call: Callable[["Net", Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.call = call

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.call(self, x)


def chain(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x))


def residual(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.c(net.b(y)) + y


def residual_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.c(net.b(y))
    z += y
    return z


def two_outputs(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    y = net.a(x)
    z = net.b(y)
    return y, z, net.c(z)


def late_input(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    return net.b(net.a(x)).sum(), x.sum()


def through_views(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    tokens = y.flatten(2).unsqueeze(1)  # keeps y, the memory behind it, alive
    z = net.c(net.b(y))
    return torch.cat([z.flatten(2), tokens.squeeze(1)], 1)


def halves(net: Net, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, 1)
    return torch.sigmoid(left) * right


def maximum(net: Net, x: Tensor) -> Tensor:
    return net.a(x).max(1).values


def dropped_out(net: Net, x: Tensor) -> Tensor:
    return F.dropout(net.a(x), 0.5, training=net.training)


def dead_end(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.a(x).repeat(1, 100, 1, 1)
    return y


@pytest.mark.parametrize(
    ("call", "channels"),
    [
        pytest.param(chain, 8 + 4, id="input freed after a: a, b"),
        pytest.param(residual, 8 + 8 + 8, id="while adding: y, c, sum"),
        pytest.param(residual_in_place, 8 + 4 + 8, id="while c runs: y, b, c; the sum takes nothing"),
        pytest.param(two_outputs, 8 + 4 + 8, id="outputs stay"),
        pytest.param(late_input, 2 + 8 + 4, id="input used last stays"),
        pytest.param(through_views, 8 + 8 + 16, id="views keep memory alive and take none"),
        pytest.param(halves, 8 + 4 + 4, id="both halves live while one is used"),
        pytest.param(maximum, 8 + 1 + 2, id="maxima and, in 64 bit, their unused indices"),
        pytest.param(dropped_out, 2 + 8, id="dropout outside training takes nothing"),
        pytest.param(dead_end, 2 + 8, id="dropped results are not computed"),
    ],
)
def test_peak_memory_is_that_derived_by_hand(call: Callable[..., Tensor], channels: int) -> None:
    graph = capture(Net(call).eval(), torch.randn(1, 2, 8, 8))
    assert peak_activation_bytes(graph) == channels * CHANNEL


@pytest.mark.parametrize("call", [residual, halves, maximum])
def test_peak_memory_at_other_sizes_asks_for_single_tensors(call: Callable[..., Tensor]) -> None:
    graph = capture(Net(call).eval(), torch.randn(1, 2, 8, 8))

    def half(node: Node) -> int:
        assert isinstance(node.meta["val"], Tensor)
        return tensor_bytes(node) // 2

    assert peak_activation_bytes(graph, half) == peak_activation_bytes(graph) // 2


def test_a_model_that_returns_its_input_holds_its_input() -> None:
    assert peak_activation_bytes(capture(nn.Identity(), torch.randn(1, 2, 8, 8))) == 2 * CHANNEL


def test_a_convolution_reads_input_weight_and_bias_and_writes_its_output() -> None:
    (node,) = capture(nn.Conv2d(2, 8, 3, padding=1), torch.randn(1, 2, 8, 8)).nodes
    assert moved_bytes(node) == (2 + 8) * CHANNEL + (8 * 2 * 9 + 8) * 4


def test_views_move_nothing_and_in_place_ops_read_and_write() -> None:
    graph = capture(Net(lambda net, x: net.a(x).relu_().flatten(2)).eval(), torch.randn(1, 2, 8, 8))
    _, relu, flatten = graph.nodes
    assert moved_bytes(relu) == 2 * 8 * CHANNEL
    assert moved_bytes(flatten) == 0


def test_what_a_view_broadcasts_is_read_once() -> None:
    class Broadcast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.expand(16, 2, 8, 8))

    *_, relu = capture(Broadcast(), torch.randn(1, 2, 8, 8)).nodes
    assert moved_bytes(relu) == (1 + 16) * 2 * CHANNEL
    assert tensor_bytes(relu) == 16 * 2 * CHANNEL
