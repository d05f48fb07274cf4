"""TVM's RPC server and tracker on loopback, ended with everything that they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


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
