"""A compiled library on another machine, over TVM's own RPC: directly, or through a tracker that shares out devices.

    python -m tvm.exec.rpc_server --host 0.0.0.0 --port 9090 --no-fork        # there

    with TvmRemote(Path("model-aarch64.tvm.so"), "192.168.0.7:9090") as remote:
        remote.run([image])
        remote.milliseconds([image])        # as the device itself measures it

Whoever reaches the port can run code there: keep it inside a network that you trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.errors import ExportError, TargetUnavailableError
from secateur.export.runtime import Array, Runtime
from secateur.export.tvm_format import Signature

REPEATS = 20


class TvmRemote(Runtime):
    """A library that was sent to a device and is called there.

    Args:
        address: `host:port` of an RPC server, or of a tracker when `key` is given.
        key: of a device that the tracker knows.
        timeout_s: for the connection, and for the tracker to find a free device.

    Raises:
        ExportError: the library is damaged.
        TargetUnavailableError: no device answers.
    """

    def __init__(self, path: Path, address: str, key: str = "", timeout_s: int = 60) -> None:
        self.path, self._signature = path, Signature.read(path)
        self.tasks = tuple(self._signature.tasks)
        self.batch = self._signature.inputs[0][0][0] if self._signature.inputs else None
        self._session = _session(address, key, timeout_s)
        from tvm import relax

        self._session.upload(str(path))
        self._device = self._session.cpu(0)
        self._machine = relax.VirtualMachine(self._session.load_module(path.name), self._device)

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one batch.

        Raises:
            ExportError: inputs that the model does not take.
        """
        self._set(inputs)
        self._machine.invoke_stateful("main")
        outputs = self._machine.get_outputs("main")
        several = [outputs] if hasattr(outputs, "numpy") else list(outputs)
        return {task: value.numpy() for task, value in zip(self.tasks, several, strict=True)}

    def milliseconds(self, inputs: Sequence[Array]) -> list[float]:
        """Latencies of REPEATS calls, measured on the device."""
        self._set(inputs)
        evaluate = self._machine.time_evaluator("invoke_stateful", self._device, number=1, repeat=REPEATS)
        return [1e3 * float(seconds) for seconds in evaluate("main").results]

    def _set(self, inputs: Sequence[Array]) -> None:
        wanted = [(tuple(shape), dtype) for shape, dtype in self._signature.inputs]
        given = [(value.shape, value.dtype.name) for value in inputs]
        if given != wanted:
            raise ExportError(f"{self.path} does not run on the given inputs: {given}", f"it takes: {wanted}")
        import tvm

        tensors = [tvm.runtime.tensor(np.ascontiguousarray(value), self._device) for value in inputs]
        self._machine.set_input("main", *tensors)


def _session(address: str, key: str, timeout_s: int) -> Any:
    from tvm import rpc

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TargetUnavailableError(f'"{address}" is no address', "give it as host:port")
    try:
        if key:
            return rpc.connect_tracker(host, int(port)).request(key, session_timeout=timeout_s)
        return rpc.connect(host, int(port), session_timeout=timeout_s)
    except Exception as error:  # of many unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise TargetUnavailableError(
            f"no TVM server answers at {address}: {reason}", "start one there: python -m tvm.exec.rpc_server"
        ) from error
