"""to_onnx: what the file says, what it computes, and what the exporter refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_models import (
    OddChannels,
    OneConvolution,
    OneTaskAtATime,
    TinyViT,
    TwoInputs,
    example,
    make_workload,
    warmed,
)
from torch import Tensor, nn
from toy_metrics import AbsoluteError

import secateur.export.onnx as export_onnx
from secateur.core.errors import ExportError
from secateur.core.predict import predict
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.export.onnx_format import OPSET
from secateur.export.onnx_session import OnnxModel

DEPTH = Task("depth", nn.functional.l1_loss, AbsoluteError(), "lower")
MODELS = [OddChannels, OneTaskAtATime, TinyViT, TwoInputs]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", MODELS)
def test_any_batch_size_gives_what_torch_gives(kind: type[nn.Module], tmp_path: Path) -> None:
    model = warmed(kind())
    workload = make_workload(model)
    runtime = OnnxModel(to_onnx(model, workload, tmp_path / "model.onnx"), threads=1)
    assert tuple(runtime.tasks) == model.tasks
    for size in (1, 5):
        inputs = example(model, size)
        with torch.no_grad():
            wanted = predict(model, inputs, workload.tasks)
        got = runtime.predict(inputs)
        for task in model.tasks:
            torch.testing.assert_close(got[task], wanted[task], atol=1e-5, rtol=1e-5)


def test_the_file_speaks_the_users_words(tmp_path: Path) -> None:
    model = warmed(OddChannels())
    path = to_onnx(model, make_workload(model), tmp_path / "model.onnx")
    document = onnx.load(path)
    assert document.opset_import[0].version == OPSET
    assert [value.name for value in document.graph.input] == ["input"]
    assert [value.name for value in document.graph.output] == ["depth", "relu"]
    assert document.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    names = {value.name for value in document.graph.initializer}
    assert {"encoder.0.0.weight", "heads.depth.bias"} <= names
    assert not any(name.startswith("auxiliary") for name in names), "an output that is no task was exported"
    assert list(tmp_path.iterdir()) == [path], "the weights must be inside of the file"
    assert str(Path(__file__).parent).encode() not in path.read_bytes(), "the file must not tell folders"
    notes = [entry.value for node in document.graph.node for entry in node.metadata_props]
    assert "['', 'heads.depth', " in "".join(notes), "nodes tell the module they came from"
    assert "model" not in "".join(notes), "and nothing of what was wrapped around it"
    assert not any(node.op_type == "BatchNormalization" for node in document.graph.node)


def test_several_inputs_are_numbered(tmp_path: Path) -> None:
    model = TwoInputs().eval()
    runtime = OnnxModel(to_onnx(model, make_workload(model), tmp_path / "model.onnx"))
    assert list(runtime.inputs) == ["input_1", "input_2"]


def test_a_task_named_like_the_input(tmp_path: Path) -> None:
    class Echo(TinyViT):
        tasks = ("kind", "input")

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"kind": super().forward(x)["kind"], "input": x * 2}

    model = Echo().eval()
    runtime = OnnxModel(to_onnx(model, make_workload(model), tmp_path / "model.onnx"))
    images = example(model, 2)
    torch.testing.assert_close(runtime.predict(images)["input"], images * 2)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = OddChannels().train()
    model.encoder.eval()  # a frozen part of a model in training
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    to_onnx(model, make_workload(OddChannels()), tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = OddChannels().eval()
    workload = make_workload(model)
    capfd.readouterr()
    to_onnx(model, workload, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_large_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "INLINE_LIMIT", 100)
    model = OddChannels().eval()
    path = to_onnx(model, make_workload(model), tmp_path / "model.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    images = example(model, 2)
    with torch.no_grad():
        torch.testing.assert_close(OnnxModel(path).predict(images)["depth"], model(images)["final"]["depth"])


class Eigenvalues(OneConvolution):
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = self.Inner()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": self.spectrum(self.stem(x))}


class FixedBatch(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": self.stem(x).view(2, -1) if x.shape[0] == 2 else self.stem(x).flatten(1)}


class Branching(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": self.stem(x) if x.sum() > 0 else -x}


class TuplePrediction(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"depth": (self.stem(x), x)}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Eigenvalues, ["linalg_eig", "spectrum"]),
        (FixedBatch, ["one batch size"]),
        (Branching, ["torch.export", "data-dependent"]),
        (TuplePrediction, ["depth", "tuple"]),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line(kind: type[nn.Module], said: list[str], tmp_path: Path) -> None:
    model = kind().eval()
    workload = Workload("broken", model, example(model), (DEPTH,), [], [], [])
    with pytest.raises(ExportError) as caught:
        to_onnx(model, workload, tmp_path / "model.onnx")
    assert all(word in caught.value.message for word in said), caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    workload = make_workload(TinyViT())
    with pytest.raises(ExportError):
        to_onnx(Eigenvalues(), workload.select_tasks(["kind"]), path)
    assert path.read_bytes() == b"older"


class Keeping(OneConvolution):
    """Makes a table from a parameter in evaluation, and keeps it until training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.kept = nn.Parameter(torch.rand(4, 1, 1)), dict[str, Tensor]()

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not self.kept:
            self.kept["table"] = self.scale * 2
        return {"depth": self.stem(x) * self.kept["table"]}


def test_what_a_model_keeps_from_evaluation_is_made_anew(tmp_path: Path) -> None:
    model = Keeping().eval()
    workload = make_workload(model)
    x = workload.example_input
    model.kept = {"table": torch.zeros(4, 1, 1)}  # of other parameters
    path = to_onnx(model, workload, tmp_path / "model.onnx")
    wanted = (model.stem(x) * model.scale * 2).detach()
    assert torch.equal(model(x)["depth"], wanted)
    np.testing.assert_allclose(OnnxModel(path, 1).run([x.numpy()])["depth"], wanted, atol=1e-5)
