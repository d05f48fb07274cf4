"""check_parity: the same figures pass, an altered artefact does not, and the message names the task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import OddChannels, TinyViT, make_workload
from onnx import numpy_helper
from torch import Tensor

from secateur.core.errors import DataError, ExportError, ParityError
from secateur.core.task import Workload
from secateur.export.onnx import to_onnx
from secateur.export.onnx_session import OnnxModel
from secateur.export.parity import Tolerance, check_parity


@pytest.fixture(scope="module")
def workload() -> Workload:
    torch.manual_seed(0)
    return make_workload(OddChannels().eval(), batches=3, size=4)


@pytest.fixture(scope="module")
def exported(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(workload.model, workload, tmp_path_factory.mktemp("exported") / "model.onnx")


def alter(path: Path, name: str, factor: float, out: Path) -> Path:
    """A copy of the file in which one weight is multiplied by a factor."""
    document = onnx.load(path)
    weight = next(value for value in document.graph.initializer if value.name == name)
    weight.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weight) * factor).astype(np.float32), name))
    onnx.save(document, out)
    return out


def test_a_sound_artefact_passes_on_every_sample(workload: Workload, exported: Path) -> None:
    parity = check_parity(workload.model, OnnxModel(exported).predict, workload)
    assert parity.samples == 12
    assert 0 <= parity.mean_abs <= parity.max_abs < 1e-5
    assert set(parity.metrics) == {"depth", "relu"}
    assert check_parity(workload.model, OnnxModel(exported).predict, workload, batches=1).samples == 4


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_an_altered_weight_is_found_and_its_task_named(
    workload: Workload, exported: Path, tmp_path: Path, factor: float
) -> None:
    altered = OnnxModel(alter(exported, "heads.relu.weight", factor, tmp_path / "altered.onnx"))
    with pytest.raises(ParityError, match='"relu"') as caught:
        check_parity(workload.model, altered.predict, workload)
    assert ("NaN" in caught.value.message) == (factor != factor)


def test_tolerance_follows_the_scale_of_the_outputs(workload: Workload) -> None:
    def scaled(error: float) -> Workload:
        class Large(OddChannels):
            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {task: 1e4 * (1 + error) * value for task, value in super().forward(x)["final"].items()}

        model = Large().eval()
        model.load_state_dict(workload.model.state_dict())
        return workload.with_model(model)

    exact, off = scaled(0.0), scaled(1e-4)
    runner = lambda inputs: off.model(inputs)  # noqa: E731
    assert check_parity(exact.model, runner, exact).max_abs > 0.1
    with pytest.raises(ParityError, match="outputs differ"):
        check_parity(exact.model, runner, exact, tolerance=Tolerance(1e-4, 1e-6, 5e-3))


def test_equal_infinities_are_no_difference_but_nan_is() -> None:
    model = TinyViT().eval()
    workload = make_workload(model)

    def constant(value: float) -> Workload:
        class Constant(TinyViT):
            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {task: torch.full_like(y, value) for task, y in super().forward(x).items()}

        return workload.with_model(Constant().eval())

    one = constant(float("inf"))
    object.__setattr__(one, "tasks", tuple(replace(task, metric=Count()) for task in one.tasks))
    assert check_parity(one.model, one.model, one).max_abs == 0
    nan = constant(float("nan"))
    with pytest.raises(ParityError, match="torch model predicts NaN"):
        check_parity(nan.model, nan.model, nan)


class Count:
    """A metric that looks at no figure."""

    total = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.total += len(prediction)

    def compute(self) -> float:
        return float(self.total)


class Flipping(Count):
    """A metric that counts positive predictions, so that rounding around zero decides it."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.total += int((prediction > 0).sum())


def test_a_metric_that_differs_is_found_although_outputs_agree() -> None:
    workload = make_workload(TinyViT().eval())
    workload = replace(workload, tasks=tuple(replace(task, metric=Flipping()) for task in workload.tasks))

    def tiny(sign: float) -> Workload:
        class Tiny(TinyViT):
            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {task: torch.full_like(y, sign * 1e-9) for task, y in super().forward(x).items()}

        return workload.with_model(Tiny().eval())

    with pytest.raises(ParityError, match="the metric is"):
        check_parity(tiny(1).model, tiny(-1).model, workload)


def test_shapes_must_agree(workload: Workload) -> None:
    def runner(inputs: Tensor) -> dict[str, Tensor]:
        return {task: value[:1] for task, value in workload.model(inputs)["final"].items()}

    with pytest.raises(ParityError, match="shape"):
        check_parity(workload.model, runner, workload)


def test_every_task_must_have_its_output(workload: Workload) -> None:
    with pytest.raises(ParityError, match='no output for task "relu"') as caught:
        check_parity(workload.model, lambda x: {"depth": workload.model(x)["final"]["depth"]}, workload)
    assert "depth" in caught.value.hint


def test_an_empty_split_is_no_proof(workload: Workload, exported: Path) -> None:
    with pytest.raises(DataError, match="test loader"):
        check_parity(workload.model, OnnxModel(exported).predict, replace(workload, test=[]))


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_one_clear_line(
    exported: Path, share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = exported.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ExportError) as caught:
        OnnxModel(cut)
    assert str(cut) in caught.value.message
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_no_file_and_wrong_inputs_are_clear_too(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not exist"):
        OnnxModel(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="takes 1 inputs, 2 were given"):
        OnnxModel(exported).predict((torch.zeros(1, 3, 16, 16), torch.zeros(1)))
    with pytest.raises(ExportError, match="does not run") as caught:
        OnnxModel(exported).predict(torch.zeros(1, 4, 16, 16))
    assert "\n" not in caught.value.message
