"""The GPU of this machine: asked of the driver, measured with the first runtime that takes every model, predicted where
there is none. What needs no GPU runs on the CPU here."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import OddChannels, make_workload
from onnx import TensorProto, helper, load, save

from secateur.core.errors import TargetUnavailableError
from secateur.export.onnx import to_onnx
from secateur.targets import gpu, nvidia, registry
from secateur.targets.device import get
from secateur.targets.gpu import Network, measure_gpu
from secateur.targets.registry import status_of
from secateur.verbs.measure import Subject, measure

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def _anew() -> None:
    nvidia.gpus.cache_clear()


def products(path: Path, count: int) -> Path:
    """So many products of matrices, one after another."""
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(count)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], [0.01] * 64**2)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Driver:
    """A driver that knows two GPUs."""

    names = ("NVIDIA H200", "NVIDIA T4")

    def __init__(self, error: int = 0) -> None:
        self.error = error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = self.names[device.value].encode()
        return 0


def test_the_driver_tells_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert nvidia.gpus() == Driver.names
    nvidia.gpus.cache_clear()
    assert (status_of("gpu").status, status_of("gpu").reason) == ("measured", "on NVIDIA H200")
    nvidia.gpus.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(error=100))
    assert nvidia.gpus() == ()


@no_gpu
def test_without_a_gpu_it_is_predicted_as_the_device_that_it_is_like(tmp_path: Path) -> None:
    assert status_of("gpu").status == "predicted"
    file = {"it": Subject.of_file(products(tmp_path / "it.onnx", 4))}
    found, like = (measure(file, get(name))["it"] for name in ("gpu", "gpu:rtx-3060-ti"))
    assert (found.source, found.target, found.latency) == ("predicted", "gpu", like.latency)
    assert found.reason == "there is no NVIDIA GPU here, as gpu:rtx-3060-ti"
    assert (found.flops, found.params) == (4 * 2 * 64**2, 64**2)


@no_gpu
def test_a_gpu_whose_runtimes_all_fail_is_predicted_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "gpus", lambda: ("NVIDIA H200",))
    found = measure({"it": Subject(products(tmp_path / "it.onnx", 4))}, get("gpu"))["it"]
    assert found.source == "predicted"
    for why in ("as gpu:rtx-3060-ti; not measured", "tensorrt: ", "onnxruntime: ", "torch: it runs no ONNX files"):
        assert why in str(found.reason)
    assert "pip install" in str(found.how)


@no_gpu
def test_files_run_with_the_first_runtime_that_takes_them_all(tmp_path: Path) -> None:
    """Here ONNX Runtime, with inputs and outputs bound to where it runs. Twenty times the products take longer."""
    networks = {str(count): Network(products(tmp_path / f"{count}.onnx", count)) for count in (2, 40)}
    found = measure_gpu(networks, batch=64, against="40", device="cpu", limit_s=1.0)
    assert all(profile.backend.startswith("onnxruntime") for profile in found.values())
    assert all("batch 64" in profile.backend for profile in found.values())
    assert found["40"].speedup_against is None
    assert found["2"].speedup_against is not None
    assert found["2"].speedup_against > 2


def test_torch_runs_what_has_modules_in_evaluation_mode_and_leaves_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ENGINES", {"torch": gpu.ENGINES["torch"]})
    workload = make_workload(OddChannels().train())
    modes: list[bool] = []
    workload.model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    path = to_onnx(workload.model, workload, tmp_path / "model.onnx")
    modes.clear()
    found = measure_gpu({"it": Network(path, lambda: workload)}, batch=3, device="cpu", limit_s=0.2)["it"]
    assert found.backend.startswith("torch ")
    assert set(modes) == {False}
    assert workload.model.training
    with pytest.raises(TargetUnavailableError, match="torch: it runs no ONNX files"):
        measure_gpu({"file": Network(path)}, device="cpu")


def test_open_dimensions_are_fixed_for_runtimes_that_want_it(tmp_path: Path) -> None:
    inputs = Network(products(tmp_path / "open.onnx", 2)).inputs(5, {})
    fixed = load(gpu._of_fixed_shapes(tmp_path / "open.onnx", inputs, tmp_path / "fixed.onnx"))
    assert [dim.dim_value for dim in fixed.graph.input[0].type.tensor_type.shape.dim] == [5, 64]
    assert fixed.graph.node == load(tmp_path / "open.onnx").graph.node


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("runtime", sorted(gpu.ENGINES))
def test_every_runtime_measures_on_the_gpu(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ENGINES", {runtime: gpu.ENGINES[runtime]})
    workload = make_workload(OddChannels().eval())
    path = to_onnx(workload.model, workload, tmp_path / "model.onnx")
    try:
        found = measure_gpu({"it": Network(path, lambda: workload)})["it"]
    except TargetUnavailableError as error:
        pytest.skip(error.message)
    assert found.source == "measured"
    assert nvidia.gpus()[0] in found.backend
