"""A library on a "device": TVM's RPC server and tracker on loopback, ended with everything that they started."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from test_tvm import dense

from secateur.core.errors import ExportError, TargetUnavailableError
from secateur.export.tvm_format import compile_onnx
from secateur.export.tvm_rpc import REPEATS, TvmRemote

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("tvm"), reason="needs secateur[tvm]"),
    pytest.mark.slow,
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(module: str, port: int, *more: str) -> Iterator[None]:
    """A TVM service in a process group of its own, ended as a group: its workers would stay otherwise."""
    at = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]  # else none above 9199 is tried
    command = [sys.executable, "-m", f"tvm.exec.{module}", *at, *more]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(port, child)
        yield
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert child.poll() is None, "the service ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the service does not answer")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rpc")
    return compile_onnx(dense(folder / "relu.onnx", [1, 4]), folder / "relu.tvm.so")


def test_a_library_runs_where_it_was_sent(library: Path) -> None:
    port, given = free_port(), np.array([[-1, 2, -3, 4]], np.float32)
    with served("rpc_server", port), TvmRemote(library, f"127.0.0.1:{port}") as remote:
        np.testing.assert_array_equal(remote.run([given])["y"], [[0, 2, 0, 4]])
        times = remote.milliseconds([given])
        assert len(times) == REPEATS
        assert all(time > 0 for time in times)
        with pytest.raises(ExportError, match="does not run"):
            remote.run([given[:, :3]])


def test_a_tracker_shares_out_devices(library: Path) -> None:
    tracker, port = free_port(), free_port()
    with (
        served("rpc_tracker", tracker),
        served("rpc_server", port, "--tracker", f"127.0.0.1:{tracker}", "--key", "board"),
        TvmRemote(library, f"127.0.0.1:{tracker}", key="board") as remote,
    ):
        np.testing.assert_array_equal(remote.run([np.ones((1, 4), np.float32)])["y"], np.ones((1, 4)))


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_nobody_there_is_one_clear_line(address: str, library: Path) -> None:
    with pytest.raises(TargetUnavailableError) as caught:
        TvmRemote(library, address, timeout_s=1)
    assert address in caught.value.message
    assert "\n" not in caught.value.message
