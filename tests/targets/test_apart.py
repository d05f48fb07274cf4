"""Artefacts are measured in processes of their own: in turns, with errors as clear as in this one, and none left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from secateur.core.errors import ExportError
from secateur.targets.apart import Artefact, Process, sample_apart

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
FAST = {"warmup_s": 0.0, "limit_s": 0.1}


def matmul_chain(path: Path, size: int, length: int) -> Path:
    names = ["x", *(f"v{index}" for index in range(length - 1)), "y"]
    nodes = [helper.make_node("MatMul", [before, before], [after]) for before, after in pairwise(names)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_times_are_those_of_the_work(tmp_path: Path) -> None:
    """Sixty-four times the multiplications, or more, take longer on any machine."""
    files = {
        "large": Artefact("onnx", matmul_chain(tmp_path / "large.onnx", 256, 8)),
        "small": Artefact("onnx", matmul_chain(tmp_path / "small.onnx", 32, 8)),
    }
    inputs = {"large": [np.eye(256, dtype=np.float32)], "small": [np.eye(32, dtype=np.float32)]}
    samples = sample_apart(files, inputs, affinity=sorted(os.sched_getaffinity(0))[:1], **FAST)
    assert len(samples["large"]) == len(samples["small"]) >= 3
    assert np.median(samples["large"]) > 3 * np.median(samples["small"])


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores, and Linux to tell where a thread may run")
def test_threads_that_share_a_call_have_a_core_each(tmp_path: Path) -> None:
    path = matmul_chain(tmp_path / "m.onnx", 256, 8)
    with Process("onnx", path, [np.eye(256, dtype=np.float32)], threads=2) as process:
        threads = Path(f"/proc/{process._child.pid}/task").iterdir()
        bound = [cores for each in threads if len(cores := os.sched_getaffinity(int(each.name))) == 1]
        assert len(bound) == 2
        assert set.intersection(*bound) == set()
    with Process("onnx", path, [np.eye(256, dtype=np.float32)], threads=1) as process:
        assert os.sched_getaffinity(process._child.pid) == os.sched_getaffinity(0), "alone it may go where it likes"


def test_nothing_else_is_in_the_process() -> None:
    heavy = {"torch", "onnxruntime", "tvm"}
    code = f"import secateur.targets.worker as w, sys; w.load_formats(); print({heavy} & {{*sys.modules}})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped process with its parent")
def test_a_killed_parent_leaves_no_stopped_process(tmp_path: Path) -> None:
    path = matmul_chain(tmp_path / "m.onnx", 8, 2)
    program = (
        "import numpy as np, sys, time; from pathlib import Path; from secateur.targets.apart import Process\n"
        f"one = Process('onnx', Path({str(path)!r}), [np.eye(8, dtype=np.float32)])\n"
        "print(one._child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            assert comes_to(pid, "T")
            parent.kill()
            assert comes_to(pid, "Z")
        finally:
            parent.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def comes_to(pid: int, wanted: str) -> bool:
    """Whether a process is in a state within some seconds; one that ended and nobody waited for is a zombie, Z, and so
    is one that is not there any more."""
    for _ in range(100):
        try:
            found = state(pid)
        except FileNotFoundError:
            found = "Z"
        if found == wanted:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process("onnx", matmul_chain(tmp_path / "m.onnx", 8, 2), [np.eye(8, dtype=np.float32)])


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_whoever_has_no_turn_is_stopped_and_nobody_stays(process: Process) -> None:
    pid = process._child.pid
    with process:
        assert process.turn() > 0
        assert os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT) is not None
        assert state(pid) == "T"
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_that_dies_is_one_clear_line(process: Process) -> None:
    with process:
        os.kill(process._child.pid, signal.SIGKILL)
        process._child.wait()  # so that what is sent now stays in the pipe
        with pytest.raises(ExportError, match=r"m\.onnx ended its process \(SIGKILL\)"):
            process.turn()


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_what_does_not_load_says_what_it_says_here(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"broken\.onnx is not an ONNX model") as caught:
        Process("onnx", path, [])
    assert "truncated" in caught.value.hint
    with pytest.raises(ExportError, match="no exporter"):
        Process("unheard-of", path, [])


def test_an_input_that_does_not_fit(tmp_path: Path) -> None:
    path = matmul_chain(tmp_path / "m.onnx", 8, 2)
    with (
        Process("onnx", path, [np.eye(9, dtype=np.float32)]) as wrong,
        pytest.raises(ExportError, match="does not run"),
    ):
        wrong.turn()


def test_scripts_of_the_folder_that_one_is_in_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called as a library, which the process would meet first."""
    path = matmul_chain(tmp_path / "model.onnx", 8, 1)
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    assert sample_apart({"it": Artefact("onnx", path)}, {"it": [np.eye(8, dtype=np.float32)]}, **FAST)["it"]
