"""Libraries that TVM compiled for 64-bit ARM, run under an emulator: they compute what torch computes here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from export_models import OddChannels, TinyViT, TwoInputs, make_workload
from torch import Tensor, nn

from secateur.core.inputs import tensors
from secateur.core.predict import predict
from secateur.export.onnx import to_onnx
from secateur.export.tvm_format import compile_onnx

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
WHEELS = os.environ.get("TVM_AARCH64")
"""A folder with TVM for that processor, of the versions that are installed: `pip download apache-tvm apache-tvm-ffi
--no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 -d FOLDER`."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
Run = Callable[[Path, list[Tensor]], list[np.ndarray]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a library on inputs; flat outputs in the order of the tasks."""
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    if missing or not importlib.util.find_spec("tvm"):
        pytest.skip(f"{', '.join(missing) or 'secateur[tvm]'} not installed")
    if WHEELS is None:
        pytest.skip("TVM_AARCH64 does not name TVM's packages for aarch64")
    folder = tmp_path_factory.mktemp("aarch64")
    libraries = [folder / package / "lib" for package in ("tvm", "tvm_ffi")]
    for wheel in Path(WHEELS).glob("apache_tvm*aarch64.whl"):
        with ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if "/lib/libtvm_" in name])
    program = folder / "tvm-runner"
    spec = importlib.util.find_spec("tvm_ffi")
    assert spec is not None
    headers = Path(str(spec.origin)).parent
    includes = [f"-I{headers / 'include'}", f"-I{headers / '3rdparty' / 'dlpack' / 'include'}"]
    source = Path(__file__).parent / "aarch64" / "main.cpp"
    linked = ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_runtime_extra", "-ltvm_ffi"]
    places = [*(f"-L{each}" for each in libraries), f"-Wl,-rpath-link,{libraries[1]}"]
    subprocess.run([COMPILER, "-std=c++17", *includes, source, "-o", program, *places, *linked], check=True)
    search = f"LD_LIBRARY_PATH={':'.join(map(str, libraries))}"
    emulated = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", "-E", search, str(program)]

    def call(library: Path, inputs: list[Tensor]) -> list[np.ndarray]:
        given = []
        for index, value in enumerate(inputs):
            value.numpy().tofile(folder / f"in{index}")
            given.append(f"{folder / f'in{index}'}:{'x'.join(map(str, value.shape))}")
        for old in folder.glob("out*"):
            old.unlink()
        done = subprocess.run([*emulated, library, folder / "out", *given], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [np.fromfile(file, np.float32) for file in sorted(folder.glob("out*"))]

    return call


@pytest.mark.parametrize("kind", [OddChannels, TinyViT, TwoInputs])
def test_an_arm_processor_computes_what_torch_computes(run: Run, kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    made = make_workload(model)
    onnx_file = to_onnx(model, made, tmp_path / "model.onnx", dynamic_batch=False)
    library = compile_onnx(onnx_file, tmp_path / "model-aarch64.tvm.so", "aarch64")
    found = run(library, tensors(made.example_input))
    with torch.no_grad():
        wanted = predict(model, made.example_input, made.tasks)
    assert len(found) == len(wanted)
    for got, value in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), value.flatten(), rtol=1e-4, atol=1e-5)
