"""The OpenVINO exporter: the same figures through OpenVINO, no telemetry, one line for what is damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_models import OddChannels, TinyViT, TwoInputs, example, make_workload
from torch import nn

from secateur.core.errors import ExportError
from secateur.export.formats import Options
from secateur.export.runtime import predictor
from secateur.export.source import Source

pytest.importorskip("openvino", reason="openvino is not installed (the extra [openvino])")
from secateur.export.openvino_format import OpenVino, OpenVinoModel


@pytest.mark.parametrize("kind", [OddChannels, TinyViT, TwoInputs])
def test_any_batch_gives_what_torch_gives(kind: type[nn.Module], tmp_path: Path) -> None:
    model = kind().eval()
    workload = make_workload(model)
    with Source(model, workload) as source:
        (exported,) = OpenVino().export(source, tmp_path, Options())
    assert exported.parity is not None
    assert exported.parity.max_abs < 1e-5
    assert exported.parity.samples == 6
    runtime = OpenVinoModel(exported.written.path)
    assert runtime.tasks == model.tasks
    assert runtime.batch is None
    assert len(predictor(runtime)(example(model, 5))[model.tasks[0]]) == 5


def test_half_storage_and_a_fixed_batch(tmp_path: Path) -> None:
    model = OddChannels().eval()
    sizes = {}
    with Source(model, make_workload(model)) as source:
        for precision in ("fp32", "fp16"):
            folder = tmp_path / precision
            folder.mkdir()
            (exported,) = OpenVino().export(source, folder, Options(precision=precision, static=True))
            assert OpenVinoModel(exported.written.path).batch == 1
            sizes[precision] = exported.written.beside[0].stat().st_size
    assert 0.45 < sizes["fp16"] / sizes["fp32"] < 0.6


def test_telemetry_is_never_loaded() -> None:
    code = "import sys; from secateur.export.openvino_format import import_openvino as i; i(); " + (
        "sys.exit(any(name.startswith('openvino_telemetry.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_truncated_file_is_one_clear_line(suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = OddChannels().eval()
    with Source(model, make_workload(model)) as source:
        (exported,) = OpenVino().export(source, tmp_path, Options())
    capfd.readouterr()
    cut = exported.written.path.with_suffix(suffix)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ExportError) as caught:
        OpenVinoModel(exported.written.path)
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ExportError, match="does not exist"):
        OpenVinoModel(tmp_path / "none.xml")
