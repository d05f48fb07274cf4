"""Other runtimes of this machine: the same models, in processes of their own, and one line for what cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import OddChannels, make_workload

from secateur.core.errors import ExportError
from secateur.export.onnx import to_onnx
from secateur.verbs.benchmark import benchmark


@pytest.mark.parametrize(("target", "package"), [("mobile", "pnnx"), ("cpu:openvino", "openvino")])
def test_a_model_is_measured_with_its_runtime(target: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    torch.manual_seed(0)
    (profile,) = benchmark(make_workload(OddChannels().eval()), [target]).profiles
    assert (profile.target, profile.source) == (target, "measured")
    assert profile.backend.split()[0] == {"mobile": "ncnn"}.get(target, "openvino")
    assert profile.latency is not None
    assert 0 < profile.latency.p10 <= profile.latency.median
    assert profile.flops


def test_a_bare_onnx_file_is_enough_for_openvino_and_not_for_ncnn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))  # where nothing was calibrated
    pytest.importorskip("openvino", reason="openvino is not installed")
    pytest.importorskip("pnnx", reason="pnnx is not installed")
    torch.manual_seed(0)
    model = OddChannels().eval()
    path = to_onnx(model, make_workload(model), tmp_path / "model.onnx")
    openvino, mobile = benchmark(path, ["cpu:openvino", "mobile"]).profiles
    assert openvino.source == "measured"
    assert mobile.source == "unavailable"
    assert "made from the model" in str(mobile.reason)
    with pytest.raises(ExportError, match="made from the model"):
        benchmark(path, ["mobile"])
