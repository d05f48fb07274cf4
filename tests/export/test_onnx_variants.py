"""Variants of the ONNX file: float16, a fixed batch, another opset. Each computes what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import OddChannels, TinyViT, TwoInputs, make_workload
from torch import Tensor, nn

from secateur.core.errors import ExportError, ParityError
from secateur.core.task import Workload
from secateur.export import formats
from secateur.export.bundles import export_all
from secateur.export.formats import Exported, Options, Request
from secateur.export.runtime import Runtime, run_batch


def exported(model: nn.Module, folder: Path, **options: object) -> Exported:
    ((_, made),) = export_all(model, workload_of(model), [Request("onnx", Options(**options))], folder)  # type: ignore[arg-type]
    return made


def workload_of(model: nn.Module) -> Workload:
    torch.manual_seed(0)
    return make_workload(model.eval())


@pytest.mark.parametrize("kind", [OddChannels, TinyViT, TwoInputs])
@pytest.mark.parametrize("static", [False, True])
def test_float16_is_half_the_size_and_near_enough(kind: type[nn.Module], static: bool, tmp_path: Path) -> None:
    made = exported(kind(), tmp_path, precision="fp16", static=static)
    assert made.parity is not None
    assert 0 < made.parity.max_abs < 5e-3
    assert made.parity.samples == 6, "a fixed batch of one still proves every sample"
    document = onnx.load(made.written.path)
    assert made.written.path.name == ("model-fp16-static.onnx" if static else "model-fp16.onnx")
    first = document.graph.input[0].type.tensor_type
    assert first.elem_type == onnx.TensorProto.FLOAT, "the file takes the place of the one in float32"
    assert first.shape.dim[0].dim_value == (1 if static else 0)
    wide = [w.name for w in document.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and np.prod(w.dims) > 4]
    assert wide == []


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_another_opset(opset: int, tmp_path: Path) -> None:
    made = exported(TinyViT(), tmp_path, opset=opset)
    assert onnx.load(made.written.path).opset_import[0].version == opset
    assert made.written.path.name == f"model-opset{opset}.onnx"


def test_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    class Large(OddChannels):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {task: 1e-4 * (1e5 * value) for task, value in super().forward(x)["final"].items()}

    with pytest.raises(ParityError, match="onnx"):
        exported(Large(), tmp_path, precision="fp16")


@pytest.mark.parametrize(
    ("options", "said"), [({"opset": 11}, "opset 11"), ({"precision": "fp8"}, '"fp8"'), ({"opset": 99}, "opset 99")]
)
def test_what_is_not_offered_is_refused(options: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        exported(OddChannels(), tmp_path, **options)


def test_an_option_that_no_format_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.get("onnx").__class__, "honours", frozenset())
    monkeypatch.setattr(formats, "_exporters", {"onnx": formats.get("onnx")})
    with pytest.raises(ExportError, match="opset"):
        formats.check_requests([Request("onnx", Options(opset=18))])


def test_options_survive_a_manifest() -> None:
    options = Options(precision="fp16", static=True)
    assert options.asked() == {"precision": "fp16", "static": True}
    assert Options.of(options.asked()) == options
    with pytest.raises(ExportError, match="colour"):
        Options.of({"colour": "red"})


class Doubling(Runtime):
    """Takes exactly two samples."""

    batch = 2

    def run(self, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        assert len(inputs[0]) == 2
        return {"twice": inputs[0] * 2}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_fixed_batch_serves_any_number_of_samples(size: int) -> None:
    given = np.arange(size * 3, dtype=np.float32).reshape(size, 3)
    np.testing.assert_array_equal(run_batch(Doubling(), [given])["twice"], given * 2)
