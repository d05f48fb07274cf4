"""A library on a "device": TVM's RPC server and tracker on loopback, ended with everything that they started."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from test_tvm import dense
from tvm_service import free_port, served

from secateur.core.errors import DeviceLostError, ExportError, TargetUnavailableError
from secateur.export.tvm_format import compile_onnx
from secateur.export.tvm_rpc import REPEATS, TvmDevice

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("tvm"), reason="needs secateur[tvm]"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rpc")
    return compile_onnx(dense(folder / "relu.onnx", [1, 4]), folder / "relu.tvm.so")


def test_a_library_runs_where_it_was_sent(library: Path) -> None:
    port, given = free_port(), np.array([[-1, 2, -3, 4]], np.float32)
    with served("rpc_server", port):
        remote = TvmDevice(f"127.0.0.1:{port}").load(library)
        np.testing.assert_array_equal(remote.run([given])["y"], [[0, 2, 0, 4]])
        times = remote.milliseconds([given])
        assert len(times) == REPEATS
        assert all(time > 0 for time in times)
        with pytest.raises(ExportError, match="does not run"):
            remote.run([given[:, :3]])


def test_a_device_that_goes_in_the_middle_is_lost(library: Path) -> None:
    port, given = free_port(), np.ones((1, 4), np.float32)
    with served("rpc_server", port):
        remote = TvmDevice(f"127.0.0.1:{port}").load(library)
        remote.run([given])
    with pytest.raises(DeviceLostError, match=f"127.0.0.1:{port} is lost") as caught:
        remote.run([given])
    assert "\n" not in caught.value.message


def test_a_tracker_shares_out_devices(library: Path) -> None:
    tracker, port = free_port(), free_port()
    with (
        served("rpc_tracker", tracker),
        served("rpc_server", port, "--tracker", f"127.0.0.1:{tracker}", "--key", "board"),
    ):
        remote = TvmDevice(f"127.0.0.1:{tracker}", key="board").load(library)
        np.testing.assert_array_equal(remote.run([np.ones((1, 4), np.float32)])["y"], np.ones((1, 4)))


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_nobody_there_is_one_clear_line(address: str) -> None:
    with pytest.raises(TargetUnavailableError) as caught:
        TvmDevice(address, timeout_s=1)
    assert address in caught.value.message
    assert "\n" not in caught.value.message
