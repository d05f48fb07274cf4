"""The runner for devices: built with ncnn's own source, run on this machine or under an emulator, and compared with
ncnn's Python package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import OddChannels, TinyViT, TwoInputs, example, make_workload
from torch import nn

from secateur.core.errors import ExportError, TargetUnavailableError
from secateur.export.runner.build import Toolchain, build_runner

AARCH64, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
NCNN = os.environ.get("NCNN_SOURCE")
"""ncnn's source, as `pip download ncnn --no-binary ncnn` brings it, or an ncnn that was installed."""


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    with pytest.raises(TargetUnavailableError, match="vax-linux-gnu-g" if cmake else "cmake is not installed"):
        build_runner(tmp_path, tmp_path / "runner", Toolchain("vax-linux-gnu-g++"))
    if cmake:
        with pytest.raises(ExportError, match="holds no ncnn"):
            build_runner(tmp_path, tmp_path / "runner")


def test_a_cross_compiler_names_its_machine() -> None:
    if shutil.which(AARCH64) is None:
        pytest.skip(f"{AARCH64} is not installed")
    arguments = Toolchain(AARCH64, definitions=("NCNN_INT8=OFF",)).arguments()
    assert {"-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc"} <= set(arguments)
    assert "-DNCNN_INT8=OFF" in arguments


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the aarch64 runner here."""
    missing = [name for name in (AARCH64, EMULATOR, "cmake") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    if NCNN is None:
        pytest.skip("NCNN_SOURCE does not name ncnn's source")
    output = tmp_path_factory.mktemp("runner") / "secateur-ncnn"
    return [EMULATOR, str(build_runner(Path(NCNN), output, Toolchain(AARCH64), jobs=2))]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", [OddChannels, TinyViT, TwoInputs])
def test_a_phone_computes_what_this_machine_computes(
    aarch64: list[str], kind: type[nn.Module], half: bool, tmp_path: Path
) -> None:
    pytest.importorskip("ncnn", reason="ncnn is not installed (the extra [mobile])")
    from secateur.export.ncnn import to_ncnn
    from secateur.export.ncnn_session import NcnnModel

    torch.manual_seed(0)
    model = kind().eval()
    runtime = NcnnModel(to_ncnn(model, make_workload(model), tmp_path / "m.param", half=half))
    given = example(model, 1)
    inputs = [value.numpy() for value in (given if isinstance(given, tuple) else (given,))]
    (tmp_path / "m.in").write_bytes(b"".join(value.tobytes() for value in inputs))
    shapes = ",".join("x".join(map(str, value.shape[1:])) for value in inputs)
    options = ["--limit", "0", "--warmup", "0", "--least", "3", *(["--half"] if half else [])]
    done = subprocess.run([*aarch64, *options, f"m={shapes}"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "done 3"
    wanted = np.concatenate([runtime.run(inputs)[task].ravel() for task in sorted(model.tasks)])
    got = np.fromfile(tmp_path / "m.out", np.float32)
    named = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("output ")]
    assert sorted(named) == sorted(model.tasks)
    sizes = [runtime.run(inputs)[task].size for task in named]
    parts = dict(zip(named, np.split(got, np.cumsum(sizes)[:-1]), strict=True))
    got = np.concatenate([parts[task] for task in sorted(model.tasks)])
    np.testing.assert_allclose(got, wanted, atol=5e-3 if half else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "name a model"), (["m"], "MODEL=SHAPE"), (["m=0x3"], "not a number"), (["--fast"], "unknown option"),
     (["none=1"], "cannot load none.param"), (["--cores", "some", "m=1"], "--cores")],
)  # fmt: skip
def test_the_runner_refuses_in_one_line(aarch64: list[str], arguments: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run([*aarch64, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "done" not in done.stdout
