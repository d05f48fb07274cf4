"""The ONNX file of a mixture of experts keeps its sparsity: what ONNX Runtime executes falls with the tokens routed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.experts import ExpertWeights, mix
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.export.onnx_session import OnnxModel, open_session
from secateur.workloads.metrics import Accuracy

WIDTH, HIDDEN, EXPERTS = 16, 24, 4
PRODUCTS = ("MatMul", "Gemm", "FusedGemm")


class Routed(nn.Module):
    """Scores come with the input [N, T, width + experts], so that a test decides where tokens go."""

    def __init__(self, k: int, experts: int = EXPERTS) -> None:
        super().__init__()
        self.k, noise = k, torch.Generator().manual_seed(0)
        self.up = nn.Parameter(torch.randn(experts, HIDDEN, WIDTH, generator=noise))
        self.down = nn.Parameter(torch.randn(experts, WIDTH, HIDDEN, generator=noise))
        self.register_buffer("kept", torch.arange(experts))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        weights = ExpertWeights(self.up, self.down)
        return {"mixed": mix(x[..., :WIDTH], x[..., WIDTH:], self.kept, weights, self.k)}  # type: ignore[arg-type]


def exported(model: Routed, path: Path) -> Path:
    task = Task("mixed", F.mse_loss, Accuracy(), "higher")
    example = torch.rand(2, 6, WIDTH + len(model.up))
    return to_onnx(model, Workload("routed", model, example, (task,), [], [], []), path)


def tokens(chosen: list[list[int]], experts: int = EXPERTS) -> Tensor:
    """One sample whose tokens prefer the named experts."""
    x = torch.rand(1, len(chosen), WIDTH + experts) * 0.1
    for token, numbers in enumerate(chosen):
        for number in numbers:
            x[0, token, WIDTH + number] = 1.0
    return x


def rows_multiplied(path: Path, x: Tensor, folder: Path) -> int:
    """Rows that went into matrix products, as ONNX Runtime's own profiler saw them."""
    session = open_session(path, profile_prefix=folder / "profile")
    session.run(None, {"input": x.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    shapes = [
        next(iter(event["args"]["input_type_shape"][0].values()))
        for event in events
        if event.get("args", {}).get("op_name") in PRODUCTS and "input_type_shape" in event["args"]
    ]
    return sum(int(torch.tensor(shape[:-1]).prod()) for shape in shapes)


def same(path: Path, model: Routed, x: Tensor) -> None:
    found, expected = OnnxModel(path).predict(x)["mixed"], model(x)["mixed"].detach()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_products_run_for_routed_tokens_only(k: int, tmp_path: Path) -> None:
    model = Routed(k)
    path = exported(model, tmp_path / "model.onnx")
    chosen = [[token % EXPERTS, (token + 1) % EXPERTS][:k] for token in range(6)]
    for samples in (1, 3):
        x = torch.cat([tokens(chosen)] * samples)
        assert rows_multiplied(path, x, tmp_path) == 2 * k * 6 * samples  # up, down; dense: 2 · 4 · 6 · samples
        same(path, model, x)


def test_experts_without_tokens_execute_nothing(tmp_path: Path) -> None:
    model = Routed(1)
    path = exported(model, tmp_path / "model.onnx")
    x = tokens([[2]] * 6)
    assert rows_multiplied(path, x, tmp_path) == 2 * 6
    same(path, model, x)


def test_without_a_choice_to_make_the_graph_is_static(tmp_path: Path) -> None:
    path = exported(Routed(2, experts=2), tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not kinds & {"NonZero", "TopK", "ScatterND", "If", "Loop"}
