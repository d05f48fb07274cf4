"""FLOPs are the same however they are counted: of the traced model, of its operators, and of its ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper, save
from torch import Tensor, nn
from toy_metrics import AbsoluteError

from secateur.core.errors import ExportError
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.profiles.count import count
from secateur.profiles.graph import capture
from secateur.profiles.latency.operators import total_macs
from secateur.profiles.latency.read import onnx_costs, read_onnx
from secateur.profiles.latency.traced import operators_of, read_graph


class Steps(nn.Module):
    """[N, 4, 6, 6] as 36 steps of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).mT)[0]


class With(nn.Module):
    """A function of an image and a parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class Named(nn.Module):
    """One task's prediction, by its name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"task": self.inner(x)}


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 8, 2, 2), 4 * 36 * 8 * 4),
    "overlapping transposed convolution": (lambda: nn.ConvTranspose2d(4, 8, 4, 2, 1), 4 * 36 * 8 * 16),
    "depthwise transposed convolution": (lambda: nn.ConvTranspose2d(4, 4, 4, 2, groups=4), 4 * 36 * 16),
    "1-D convolution": (lambda: With(lambda x, w: F.conv1d(x.flatten(2), w), 8, 4, 3), 8 * 34 * 4 * 3),
    "3-D convolution": (lambda: With(lambda x, w: F.conv3d(x[:, None], w), 2, 1, 3, 3, 3), 2 * 2 * 4 * 4 * 27),
    "weight on the left": (lambda: With(lambda x, w: w @ x, 5, 6), 4 * 5 * 6 * 6),
    "a weight for each channel": (lambda: With(torch.matmul, 4, 6, 5), 4 * 6 * 6 * 5),
    "einsum with a weight": (lambda: With(lambda x, w: torch.einsum("bchw,kc->bkhw", x, w), 7, 4), 7 * 36 * 4),
    "einsum of activations": (lambda: With(lambda x, w: torch.einsum("bchw,bchv->bcwv", x, x.sin()), 1), 4 * 36 * 6),
    "attention": (lambda: With(lambda x, w: F.scaled_dot_product_attention(x, x, x), 1), 2 * 4 * 6 * 6 * 6),
    "LSTM": (lambda: Steps(nn.LSTM(4, 5, batch_first=True)), 36 * 20 * (4 + 5)),
    "two ways of a GRU": (lambda: Steps(nn.GRU(4, 5, batch_first=True, bidirectional=True)), 2 * 36 * 15 * (4 + 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_model_its_operators_and_its_file_count_alike(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Named(CASES[name][0]()).eval(), torch.randn(1, 4, 6, 6)
    task = Task("task", nn.functional.l1_loss, AbsoluteError(), "lower")
    workload = Workload(name, model, images, [task], [], [], [])
    path = to_onnx(model, workload, tmp_path / "model.onnx", dynamic_batch=False)
    macs = CASES[name][1]
    assert count(model, images).costs.flops == 2 * macs
    assert total_macs(operators_of(read_graph(capture(model, images)))) == macs
    assert onnx_costs(path).flops == 2 * macs


def convolution(path: Path, *, stored: str) -> Path:
    """A convolution whose weight is `stored` as an initializer, in a node, or as whole numbers; no attribute says its
    size."""
    weight = torch.ones(8, 4, 3, 3).numpy()
    nodes, stores = [], []
    if stored == "in a node":
        nodes = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))]
    elif stored == "as whole numbers":
        scale = numpy_helper.from_array(torch.tensor(0.1).numpy(), "scale")
        stores = [numpy_helper.from_array(weight.astype("int8"), "whole"), scale]
        nodes = [helper.make_node("DequantizeLinear", ["whole", "scale"], ["w"])]
    else:
        stores = [numpy_helper.from_array(weight, "w")]
    nodes.append(helper.make_node("Conv", ["x", "w"], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])
    graph = helper.make_graph(nodes, "g", [x], [y], stores)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("stored", ["as an initializer", "in a node", "as whole numbers"])
def test_a_weight_counts_wherever_it_is_stored(stored: str, tmp_path: Path) -> None:
    costs = onnx_costs(convolution(tmp_path / "model.onnx", stored=stored))
    assert costs.flops == 2 * 8 * 16 * 4 * 9
    assert costs.params == 8 * 4 * 9 + (stored == "as whole numbers")  # and the scale


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Identity", ["x"], ["y"])], "computes nothing"),
        ([helper.make_node("Conv", ["x"], ["y"])], "Conv.*lacks an operand|do not fit together"),
        ([helper.make_node("If", ["x"], ["y"])], "chooses while it runs"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(nodes: list[object], message: str, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 6, 6]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=message):
        read_onnx(tmp_path / "model.onnx")


def test_shapes_are_those_of_the_files_inputs(tmp_path: Path) -> None:
    path = convolution(tmp_path / "model.onnx", stored="as an initializer")
    assert onnx_costs(path, {"x": (1, 4, 8, 8)}).flops == 2 * 8 * 36 * 4 * 9
    with pytest.raises(ExportError, match="has no input image"):
        onnx_costs(path, {"image": (1, 4, 8, 8)})
    with pytest.raises(ExportError, match="has 4 dimensions"):
        onnx_costs(path, {"x": (1, 4, 8)})
