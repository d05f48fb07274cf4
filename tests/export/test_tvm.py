"""TVM: our kernels and schedule compute what torch computes, on every shape that is awkward for vectors and tiles."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import OddChannels, OneTaskAtATime, TinyViT, TwoInputs, make_workload
from onnx import TensorProto, helper
from torch import Tensor, nn

from secateur.core.errors import ExportError, MissingExtraError, TargetUnavailableError
from secateur.export import formats
from secateur.export.bundles import export_all
from secateur.export.formats import Exported, Options, Request
from secateur.export.onnx import to_onnx
from secateur.export.tvm_format import TvmModel, build, compile_onnx
from secateur.export.tvm_targets import target_of

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("tvm"), reason="needs secateur[tvm]")


def compiled(model: nn.Module, folder: Path, **options: object) -> Exported:
    torch.manual_seed(0)
    request = Request("tvm", Options(**options))  # type: ignore[arg-type]
    ((_, made),) = export_all(model, make_workload(model), [request], folder)
    return made


@pytest.mark.parametrize("kind", [OddChannels, TinyViT, TwoInputs, OneTaskAtATime])
def test_a_library_computes_what_torch_computes(kind: type[nn.Module], tmp_path: Path) -> None:
    made = compiled(kind().eval(), tmp_path)
    assert made.parity is not None
    assert made.parity.max_abs < 1e-5
    assert made.parity.samples == 6, "every sample, although the library takes one at a time"


class Picks(nn.Module):
    """Rows of a table, of which TVM's own compiler warns."""

    tasks = ("dense",)

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        places = (x.mean((2, 3)) * 0 + 2).long()
        return {"dense": nn.functional.embedding(places, self.rows)}


def test_compiling_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compiled(Picks().eval(), tmp_path)
    assert "Warning" not in "".join(capfd.readouterr())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the cores of a process are known on Linux")
@pytest.mark.parametrize("some", [slice(None), slice(0, 1), slice(-1, None)], ids=["all", "first", "last"])
def test_the_calling_thread_keeps_its_cores(some: slice, library: Path) -> None:
    """TVM itself would bind it to the first core, and all that is run or started later with it."""
    code = (
        "import os, sys; before = {*map(int, sys.argv[2:])}; os.sched_setaffinity(0, before)\n"
        "import numpy as np; from pathlib import Path; from secateur.export.tvm_format import TvmModel\n"
        "model = TvmModel(Path(sys.argv[1]), 2)\n"
        "shape, dtype = model._signature.inputs[0]; model.run([np.zeros(shape, dtype)])\n"
        "assert os.sched_getaffinity(0) == before\n"
        "assert all(os.sched_getaffinity(int(each)) <= before for each in os.listdir('/proc/self/task'))"
    )
    cores = sorted(os.sched_getaffinity(0))[some]
    subprocess.run([sys.executable, "-c", code, str(library), *map(str, cores)], check=True)


class Shapes(nn.Module):
    """Every kind of product and reduction: prime sizes, groups, strides, dilation, transposed, pooled, resized."""

    tasks = ("dense", "vector")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 37, 3, 2, 1)
        self.depthwise = nn.Conv2d(37, 37, 5, 1, 2, groups=37)
        self.point = nn.Conv2d(37, 24, 1)
        self.grouped = nn.Conv2d(24, 30, 3, 1, 2, dilation=2, groups=6)
        self.up = nn.ConvTranspose2d(30, 11, 3, 2, 1, output_padding=1)
        self.twice = nn.ConvTranspose2d(11, 7, 2, 2)
        self.norm = nn.LayerNorm(30)
        self.head = nn.Linear(30, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = nn.functional.relu6(self.stem(x))
        x = nn.functional.hardswish(self.depthwise(x))
        x = nn.functional.silu(self.point(x))
        x = nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 3, 1, 1), 2)
        x = self.grouped(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), -1)
        vector = self.head((weights @ tokens).mean(1).tanh())
        wide = nn.functional.interpolate(self.twice(self.up(x)), size=(19, 23), mode="bilinear")
        return {"dense": torch.cat([wide, wide.sigmoid()], 1), "vector": vector}


@pytest.mark.parametrize("size", [(26, 38), (29, 23)])
def test_awkward_shapes(size: tuple[int, int], tmp_path: Path) -> None:
    from secateur.export.onnx import to_onnx
    from secateur.export.onnx_session import OnnxModel

    torch.manual_seed(0)
    model = Shapes().eval()
    images = torch.randn(1, 3, *size)
    workload = make_workload(model).__class__("shapes", model, images, make_workload(model).tasks, [], [], [])
    path = to_onnx(model, workload, tmp_path / "model.onnx", dynamic_batch=False)
    wanted = OnnxModel(path, 1).run([images.numpy()])
    got = TvmModel(compile_onnx(path, tmp_path / "model.tvm.so"), 2).run([images.numpy()])
    for task in model.tasks:
        np.testing.assert_allclose(got[task], wanted[task], atol=2e-5, rtol=1e-4)


class Depthwise(nn.Module):
    """Depthwise convolutions by themselves."""

    tasks = ("each", "strided")

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.each = nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels)
        self.strided = nn.Conv2d(channels, channels, kernel, 2, 0, groups=channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"each": nn.functional.relu6(self.each(x)), "strided": self.strided(x)}


@pytest.mark.parametrize("height", [5, 7, 12, 64])
@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (37, 5), (96, 3)])
def test_depthwise_convolutions_in_strips_of_lines_of_any_number(
    height: int, channels: int, kernel: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, images = Depthwise(channels, kernel).eval(), torch.randn(2, channels, height, 19)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images,), path, output_names=list(model.tasks), dynamo=True, verbose=False)
    for threads in (1, 2):
        got = TvmModel(compile_onnx(path, tmp_path / "model.tvm.so"), threads).run([images.numpy()])
        for task, wanted in model(images).items():
            np.testing.assert_allclose(got[task], wanted.detach().numpy(), atol=2e-5, rtol=1e-4)


def dense(path: Path, shape: list[int | str], op: str = "Relu") -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_open_shapes_are_asked_for(tmp_path: Path) -> None:
    path = dense(tmp_path / "open.onnx", ["N", 4])
    with pytest.raises(ExportError, match="input x has open dimensions"):
        compile_onnx(path, tmp_path / "open.tvm.so")
    library = compile_onnx(path, tmp_path / "open.tvm.so", shapes={"x": (2, 4)})
    model = TvmModel(library)
    np.testing.assert_array_equal(model.run([-np.ones((2, 4), np.float32)])["y"], np.zeros((2, 4)))
    with pytest.raises(ExportError, match="does not run on the given inputs"):
        model.run([np.ones((3, 4), np.float32)])


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_no_model_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="broken") as caught:
        compile_onnx(path, tmp_path / "broken.tvm.so")
    assert "\n" not in caught.value.message


def test_an_operator_that_tvm_does_not_know(tmp_path: Path) -> None:
    path = dense(tmp_path / "det.onnx", [3, 3], "Det")
    with pytest.raises(ExportError, match="TVM cannot compile") as caught:
        compile_onnx(path, tmp_path / "det.tvm.so")
    assert "Det" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvm")
    return compile_onnx(dense(folder / "relu.onnx", [1, 4]), folder / "relu.tvm.so")


@pytest.mark.parametrize(
    ("changed", "said"), [({"machine": "riscv64"}, "riscv64"), ({"cpu": "some-other"}, "some-other")]
)
def test_code_for_another_cpu_is_not_loaded(library: Path, changed: dict[str, str], said: str, tmp_path: Path) -> None:
    copy = Path(shutil.copy(library, tmp_path))
    facts = json.loads(library.with_suffix(".json").read_bytes())
    copy.with_suffix(".json").write_text(json.dumps(facts | changed))
    with pytest.raises(TargetUnavailableError, match=said):
        TvmModel(copy)


def test_a_truncated_library(library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(library, tmp_path))
    with pytest.raises(ExportError, match="no model that TVM compiled"):
        TvmModel(copy)
    shutil.copy(library.with_suffix(".json"), tmp_path)
    copy.write_bytes(library.read_bytes()[:1000])
    with pytest.raises(ExportError, match="1000 bytes instead of"):
        TvmModel(copy)


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs g++-aarch64-linux-gnu")
def test_a_library_for_aarch64_is_one(tmp_path: Path) -> None:
    made = compiled(OddChannels().eval(), tmp_path, arch="aarch64")
    assert made.written.path.name == "model-aarch64.tvm.so"
    assert made.parity is None
    assert "aarch64" in (made.unproven or "")
    header = made.written.path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183, "EM_AARCH64"


def kernels(folder: Path) -> str:
    """The source of a small network's kernels for GPUs."""
    model = OddChannels().eval()
    onnx_file = to_onnx(model, make_workload(model), folder / "model.onnx", dynamic_batch=False)
    executable = build(onnx.load(onnx_file), target_of("sm_80"), onnx_file)
    (host,) = executable.mod.imports
    (found,) = (module for module in host.imports if module.kind == "cuda")
    return str(found.inspect_source())


@pytest.mark.parametrize("kind", [OddChannels, TinyViT])
def test_a_library_for_a_gpu_holds_its_kernels(kind: type[nn.Module], tmp_path: Path) -> None:
    made = compiled(kind().eval(), tmp_path, arch="sm_80")
    library = made.written.path
    assert library.name == "model-sm_80.tvm.so"
    assert b"__global__ void" in library.read_bytes()
    found = json.loads(library.with_suffix(".json").read_text())
    assert (found["machine"], found["cpu"]) == ("cuda", "sm_80")
    if not torch.cuda.is_available():
        assert "NVIDIA GPU" in (made.unproven or "")
        with pytest.raises(TargetUnavailableError, match=r"\(sm_80\), there is none here"):
            TvmModel(library)


@pytest.mark.skipif("CUDA_PATH" not in os.environ, reason="CUDA_PATH names no CUDA toolkit")
def test_nvidia_s_compiler_takes_the_kernels(tmp_path: Path) -> None:
    from tvm.support import nvcc

    assert nvcc.compile_cuda(kernels(tmp_path), target_format="cubin", arch="sm_80")[:4] == b"\x7fELF"


def test_a_tvm_without_cuda_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm

    monkeypatch.setattr(tvm.support, "libinfo", lambda: {"USE_CUDA": "OFF"})
    with pytest.raises(ExportError, match="built without CUDA"):
        compile_onnx(dense(tmp_path / "relu.onnx", [1, 4]), tmp_path / "relu.tvm.so", "sm_86")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_what_torch_computes(tmp_path: Path) -> None:
    arch = f"sm_{''.join(map(str, torch.cuda.get_device_capability()))}"
    made = compiled(OddChannels().eval(), tmp_path, arch=arch)
    assert made.parity is not None
    assert made.parity.max_abs < 1e-4


def test_another_cpu_that_is_not_set_up(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="z80"):
        compile_onnx(dense(tmp_path / "relu.onnx", [1, 4]), tmp_path / "relu.tvm.so", "z80")


def test_without_tvm_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        formats.get("tvm").require()
    assert 'pip install "secateur[tvm]"' in caught.value.hint


def test_nothing_is_left_beside_the_library(library: Path) -> None:
    assert sorted(path.name for path in library.parent.iterdir()) == ["relu.onnx", "relu.tvm.json", "relu.tvm.so"]


def test_a_machine_without_a_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: None)
    with pytest.raises(ExportError, match=r"a C\+\+ compiler is not installed"):
        compile_onnx(dense(tmp_path / "relu.onnx", [1, 4]), tmp_path / "relu.tvm.so")
    assert [each.name for each in tmp_path.iterdir()] == ["relu.onnx"]


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: "false")
    with pytest.raises(ExportError, match="false cannot link the library"):
        compile_onnx(dense(tmp_path / "relu.onnx", [1, 4]), tmp_path / "relu.tvm.so")
    assert [each.name for each in tmp_path.iterdir()] == ["relu.onnx"]
