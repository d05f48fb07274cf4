"""Everything runs on a device other than the CPU, and comes back: no GPU is needed to see that no tensor of the CPU
meets one of the device. What it does not show is that a GPU's own kernels compute the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import on_pretend
import pytest
import tiny
import torch
from squares import batches
from torch import Tensor
from torch.utils import cpp_extension

from secateur.core.device import Moved, moved, on_device, update
from secateur.core.errors import DeviceError
from secateur.core.predict import evaluate

HERE = Path(__file__).parent
COMPILER, WRITTEN_FOR = shutil.which("g++"), "2.13."


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("device") / "pretend.so"
    folders = [f"-I{path}" for path in cpp_extension.include_paths()]
    folders += [f"-L{path}" for path in cpp_extension.library_paths()]
    command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", str(HERE / "pretend.cpp"), "-o", str(found), *folders]
    done = subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
    if done.returncode and not torch.__version__.startswith(WRITTEN_FOR):
        pytest.skip(f"pretend.cpp was written for torch {WRITTEN_FOR}: what it builds on is no stable interface")
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
@pytest.mark.parametrize("what", on_pretend.JOBS)
def test_on_a_device_that_shares_no_tensor_with_the_cpu(library: Path, what: str, tmp_path: Path) -> None:
    command = [sys.executable, on_pretend.__file__, str(library), what]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", 'no device "gpu"'), ("cuda", "no cuda device"), ("cuda:9", "no (cuda )?device")]
)
def test_a_device_that_is_not_here_is_refused(name: str, message: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("it is here")
    with pytest.raises(DeviceError, match=message):
        on_device(tiny.workload(tiny.Squares()), name)


def test_on_the_cpu_a_workload_stays_as_it_is() -> None:
    workload = tiny.workload(tiny.Squares())
    assert on_device(workload, "cpu") is workload
    assert on_device(workload, None) is workload


def test_a_moved_loader_is_the_users_in_everything_but_where_its_batches_lie() -> None:
    loader = torch.utils.data.DataLoader(batches(1, 3), None, shuffle=True, generator=torch.Generator())
    there = Moved(Moved(loader, torch.device("cpu")), torch.device("meta"))
    assert len(there) == 3
    assert there.generator is loader.generator
    assert there.sampler is loader.sampler
    for inputs, targets in there:
        assert {tensor.device.type for tensor in (inputs, *targets.values())} == {"meta"}
    with pytest.raises(TypeError):
        len(Moved(iter(()), torch.device("meta")))


class Placed:
    """A metric that says where it is, as those of torchmetrics do."""

    device = torch.device("meta")
    seen: tuple[Tensor, Tensor]

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.seen = prediction, target

    def compute(self) -> float:
        return 0.0


def test_a_metric_is_given_tensors_where_it_is() -> None:
    metric = Placed()
    update(metric, torch.zeros(2), torch.zeros(2))
    assert {tensor.device.type for tensor in metric.seen} == {"meta"}
    assert moved({"a": (torch.zeros(1), 2)}, "meta")["a"][0].is_meta
    workload = tiny.workload(tiny.Squares())
    assert evaluate(workload.model, workload.test, workload.tasks)
