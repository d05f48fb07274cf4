"""TensorRT engines: built for real, without a GPU; run where there is one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from export_models import OddChannels, TinyViT, make_workload
from torch import nn

from secateur.core.errors import ExportError, MissingExtraError, TargetUnavailableError
from secateur.export import formats, tensorrt_format
from secateur.export.bundles import export_all
from secateur.export.formats import Exported, Options, Request
from secateur.export.tensorrt_format import Signature, TensorRtModel

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="needs secateur[tensorrt]")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def engines(model: nn.Module, folder: Path, *capabilities: int, **options: object) -> list[Exported]:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    wanted = Options(capabilities=capabilities, **options)  # type: ignore[arg-type]
    return [made for _, made in export_all(model, make_workload(model), [Request("tensorrt", wanted)], folder)]


@no_gpu
@pytest.mark.parametrize("kind", [OddChannels, TinyViT])
def test_engines_are_built_ahead_and_say_that_they_were_not_run(kind: type[nn.Module], tmp_path: Path) -> None:
    made = engines(kind().eval(), tmp_path, 80, 86)
    assert [each.written.path.name for each in made] == ["model-sm80.engine", "model-sm86.engine"]
    for each, capability in zip(made, (80, 86), strict=True):
        assert each.parity is None
        assert "needs an NVIDIA GPU" in (each.unproven or "")
        signature = Signature.read(each.written.path)
        assert signature.capability == capability
        assert signature.inputs == {"input": [1, 3, 16, 16]}
        assert set(signature.outputs) == set(kind.tasks)
        assert signature.layers > 3
        assert signature.size_bytes == each.written.path.stat().st_size > 1000
        assert each.written.details["capability"] == capability


def test_all_capabilities_are_those_of_rtx_cards() -> None:
    assert {75, 80, 86, 89, 120, 121} <= set(tensorrt_format.offered())
    assert tensorrt_format.wanted(()) == tensorrt_format.offered()
    with pytest.raises(ExportError, match="capability 61") as caught:
        tensorrt_format.wanted((86, 61))
    assert "75" in caught.value.hint


@no_gpu
def test_a_card_that_cannot_run_the_model_is_refused_by_name_and_else_left_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no engine for sm75: .*FP32 GEMM"):
        engines(TinyViT().eval(), tmp_path / "asked", 75)
    with pytest.warns(UserWarning, match=r"left out: .*sm75"):
        made = engines(TinyViT().eval(), tmp_path / "all")
    assert [each.written.details["capability"] for each in made] == [80, 86, 89, 120, 121]


@no_gpu
def test_float16_engines_are_named_so(tmp_path: Path) -> None:
    (made,) = engines(OddChannels().eval(), tmp_path, 89, precision="fp16")
    assert made.written.path.name == "model-fp16-sm89.engine"


def test_what_tensorrt_does_not_read_is_one_clear_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"cannot read broken\.onnx") as caught:
        tensorrt_format.build(broken, tmp_path / "x.engine", 86)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "x.engine").exists()


def test_a_damaged_engine_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    engine = tmp_path / "model-sm86.engine"
    engine.write_bytes(b"x" * 10)
    with pytest.raises(ExportError, match="no engine that Secateur built"):
        TensorRtModel(engine)
    facts = {"inputs": {}, "outputs": {}, "layers": 1, "size_bytes": 11, "capability": 86, "library": ""}
    engine.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(ExportError, match="10 bytes"):
        TensorRtModel(engine)


def test_without_the_package_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        formats.get("tensorrt").require()
    assert 'pip install "secateur[tensorrt]"' in caught.value.hint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", [OddChannels, TinyViT])
def test_an_engine_computes_what_torch_computes(kind: type[nn.Module], precision: str, tmp_path: Path) -> None:
    here = tensorrt_format.require_gpu("this test")
    if here not in tensorrt_format.offered():
        pytest.skip(f"TensorRT for RTX builds nothing for compute capability {here}")
    (made,) = engines(kind().eval(), tmp_path, here, precision=precision)
    assert made.parity is not None
    assert made.parity.samples == 6


@no_gpu
def test_an_engine_for_another_card_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (made,) = engines(OddChannels().eval(), tmp_path, 86)
    monkeypatch.setattr(tensorrt_format, "require_gpu", lambda what: 89)
    with pytest.raises(TargetUnavailableError, match="built for compute capability 86, this GPU has 89"):
        TensorRtModel(made.written.path)
