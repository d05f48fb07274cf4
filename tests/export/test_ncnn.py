"""to_ncnn: networks of every kind through pnnx, run by ncnn itself; and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

from secateur.core.errors import ExportError
from secateur.core.predict import predict
from secateur.core.task import Task, Workload
from secateur.export.formats import Options
from secateur.export.ncnn_param import name_blobs, read_param, write_param
from secateur.export.ncnn_session import weights_of
from secateur.export.runtime import predictor
from secateur.export.source import Source

pytest.importorskip("ncnn", reason="ncnn is not installed (the extra [mobile])")
pytest.importorskip("pnnx", reason="pnnx is not installed (the extra [mobile])")
from secateur.export.ncnn import NcnnModel, to_ncnn
from secateur.export.ncnn_format import Ncnn

MODELS = [OddChannels, OneTaskAtATime, TinyViT, TwoInputs]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_ncnn_gives_what_torch_gives(kind: type[nn.Module], half: bool, tmp_path: Path) -> None:
    model = warmed(kind())
    workload = make_workload(model)
    path = to_ncnn(model, workload, tmp_path / "model.ncnn.param", half=half)
    inputs = example(model, 3)
    with torch.no_grad():
        wanted = predict(model, inputs, workload.tasks)
    got = predictor(NcnnModel(path, half=half))(inputs)
    assert tuple(got) == model.tasks
    for task in model.tasks:
        torch.testing.assert_close(got[task], wanted[task], atol=5e-3 if half else 2e-5, rtol=5e-3 if half else 1e-4)


def test_half_storage_takes_half_the_space(tmp_path: Path) -> None:
    model = warmed(OddChannels())
    workload = make_workload(model)
    sizes = [
        weights_of(to_ncnn(model, workload, tmp_path / f"{half}.param", half=half)).stat().st_size
        for half in (False, True)
    ]
    assert 0.5 < sizes[1] / sizes[0] < 0.6, "biases stay in 32 bits"


def test_outputs_bear_the_tasks_names(tmp_path: Path) -> None:
    class Strange(TinyViT):
        tasks = ("surface normals %", "3")  # a space ends a name in ncnn's files; inner blobs are called 1, 2, 3

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return dict(zip(self.tasks, super().forward(x).values(), strict=True))

    model = Strange().eval()
    path = to_ncnn(model, make_workload(model), tmp_path / "model.ncnn.param")
    assert {"surface%20normals%20%25", "3"} <= {blob for each in read_param(path) for blob in each.gives}
    inputs = example(model, 1)
    with torch.no_grad():
        torch.testing.assert_close(predictor(NcnnModel(path))(inputs)["3"], model(inputs)["3"], atol=1e-5, rtol=1e-5)


def test_nothing_else_is_left_and_the_model_is_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = OddChannels().train()
    workload = make_workload(OddChannels())
    capfd.readouterr()
    to_ncnn(model, workload, tmp_path / "out" / "model.ncnn.param")
    assert capfd.readouterr() == ("", "")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.ncnn.bin", "model.ncnn.json", "model.ncnn.param"]
    assert all(module.training for module in model.modules())


class Eigenvalues(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": torch.linalg.eigvals(self.stem(x)).real}


class Sorting(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": self.stem(x).sort(-1)[0]}


class Integers(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": self.stem(x.float())}


class Failing(OneConvolution):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise ValueError("not today\nnor tomorrow")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Eigenvalues, "pnnx"), (Sorting, "aten::sort"), (Integers, "torch.int64"), (Failing, "not today")],
)
def test_what_ncnn_cannot_express_is_one_clear_line(kind: type[nn.Module], said: str, tmp_path: Path) -> None:
    model = kind().eval()
    image = torch.ones(1, 3, 16, 16, dtype=torch.int64) if kind is Integers else torch.randn(1, 3, 16, 16)
    tasks = (Task("depth", nn.functional.l1_loss, AbsoluteError(), "lower"),)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is asserted below
        to_ncnn(model, Workload("refused", model, image, tasks, [], [], []), tmp_path / "model.ncnn.param")
    assert isinstance(caught.value, ExportError)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = OddChannels().eval()
    return to_ncnn(model, make_workload(model), tmp_path_factory.mktemp("ncnn") / "model.ncnn.param")


@pytest.mark.parametrize("suffix", [".param", ".bin", ".json"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_one_clear_line(
    exported: Path, suffix: str, share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in exported.parent.iterdir():
        content = file.read_bytes()
        cut = content[: int(share * len(content))] if file.suffix == suffix else content
        (tmp_path / file.name).write_bytes(cut)
    with pytest.raises(ExportError) as caught:
        NcnnModel(tmp_path / exported.name)
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_inputs_of_another_shape_are_refused(exported: Path) -> None:
    runtime = NcnnModel(exported)
    with pytest.raises(ExportError, match=r"\[1, 3, 16, 16\]"):
        runtime.run([torch.zeros(1, 3, 8, 8).numpy()])
    with pytest.raises(ExportError, match="takes 1 inputs, 2 were given"):
        runtime.run([torch.zeros(1, 3, 16, 16).numpy()] * 2)


def test_files_of_different_networks_do_not_pass_for_one(exported: Path, tmp_path: Path) -> None:
    for file in exported.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    signature = tmp_path / "model.ncnn.json"
    document = json.loads(signature.read_text())
    document["outputs"][0]["blob"] = "elsewhere"
    signature.write_text(json.dumps(document))
    with pytest.raises(ExportError, match="elsewhere"):
        NcnnModel(tmp_path / exported.name)


def test_renaming_keeps_the_graph(exported: Path, tmp_path: Path) -> None:
    """An inner blob that bears a new name makes way, and renaming back gives the same file."""
    operators = read_param(exported)
    inner = operators[1].gives[0]
    renamed = name_blobs(operators, {"depth": inner})
    blobs = [blob for each in renamed for blob in each.gives]
    assert len(blobs) == len(set(blobs))
    assert [each.kind for each in renamed] == [each.kind for each in operators]
    write_param(renamed, tmp_path / "renamed.param")
    assert read_param(tmp_path / "renamed.param") == renamed
    assert name_blobs(renamed, {inner: "depth", f"{inner}_": inner}) == operators
    with pytest.raises(ExportError, match="left out nothing"):
        name_blobs(operators, {"nothing": "depth"})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_format_proves_itself(precision: Any, tmp_path: Path) -> None:
    model = warmed(TinyViT())
    with Source(model, make_workload(model)) as source:
        (exported,) = Ncnn().export(source, tmp_path, Options(precision=precision))
    assert exported.parity is not None
    assert exported.parity.samples == 6
    assert exported.parity.max_abs < (1e-5 if precision == "fp32" else 1e-2)
    assert {exported.written.path, *exported.written.beside} == set(tmp_path.iterdir())
