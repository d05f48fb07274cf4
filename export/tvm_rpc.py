"""Compiled libraries on another machine, over TVM's own RPC: directly, or through a tracker that shares out devices.

    python -m tvm.exec.rpc_server --host 0.0.0.0 --port 9090 --no-fork        # there

    device = TvmDevice("192.168.0.7:9090")
    remote = device.load(Path("model-aarch64.tvm.so"))
    remote.run([image])
    remote.milliseconds([image])        # as the device itself measures it

Whoever reaches the port can run code there: keep it inside a network that you trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.errors import DeviceLostError, ExportError, SecateurError, TargetUnavailableError
from secateur.export.runtime import Array, Runtime
from secateur.export.tvm_format import Signature

REPEATS = 20


class TvmDevice:
    """A connection to a device, which is held until this object is gone.

    Args:
        address: `host:port` of an RPC server, or of a tracker when `key` is given.
        key: of a device that the tracker knows.
        threads: inside of one operator.
        timeout_s: for the connection, and for the tracker to find a free device.

    Raises:
        TargetUnavailableError: no device answers.
    """

    def __init__(self, address: str, key: str = "", *, threads: int = 1, timeout_s: int = 60) -> None:
        self.address = address
        self._session = _session(address, key, timeout_s)
        self._loaded = 0
        with self.reached():
            self._session.get_function("runtime.config_threadpool")(1, threads)

    def load(self, path: Path) -> TvmRemote:
        """Send a library and load it there.

        Raises:
            ExportError: the library is damaged.
            DeviceLostError: the device is gone, or cannot load it.
        """
        signature = Signature.read(path)
        self._loaded += 1
        name = f"{self._loaded}-{path.name}"
        with self.reached():
            from tvm import relax

            self._session.upload(str(path), name)
            cpu = self._session.cpu(0)
            return TvmRemote(path, signature, self, relax.VirtualMachine(self._session.load_module(name), cpu), cpu)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """What fails inside of the block failed on the way to the device."""
        try:
            yield
        except SecateurError:
            raise
        except Exception as error:  # of many unrelated types
            raise DeviceLostError(
                f"{self.address} is lost: {_reason(error)}", "check that its TVM server runs, of this version"
            ) from error


class TvmRemote(Runtime):
    """A library that was sent to a device and is called there; see `TvmDevice.load`."""

    def __init__(self, path: Path, signature: Signature, device: TvmDevice, machine: Any, cpu: Any) -> None:
        self.path, self._signature, self._device, self._machine, self._cpu = path, signature, device, machine, cpu
        self.tasks = tuple(signature.tasks)
        self.batch = signature.inputs[0][0][0] if signature.inputs else None

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one batch.

        Raises:
            ExportError: inputs that the model does not take.
            DeviceLostError: the device is gone.
        """
        self._check(inputs)
        with self._device.reached():
            self._set(inputs)
            self._machine.invoke_stateful("main")
            outputs = self._machine.get_outputs("main")
            several = [outputs] if hasattr(outputs, "numpy") else list(outputs)
            return {task: value.numpy() for task, value in zip(self.tasks, several, strict=True)}

    def milliseconds(self, inputs: Sequence[Array], repeats: int = REPEATS) -> list[float]:
        """Latencies of calls, measured on the device.

        Raises:
            ExportError, DeviceLostError: see `run`.
        """
        self._check(inputs)
        with self._device.reached():
            self._set(inputs)
            evaluate = self._machine.time_evaluator("invoke_stateful", self._cpu, number=1, repeat=repeats)
            return [1e3 * float(seconds) for seconds in evaluate("main").results]

    def _check(self, inputs: Sequence[Array]) -> None:
        wanted = [(tuple(shape), dtype) for shape, dtype in self._signature.inputs]
        given = [(value.shape, value.dtype.name) for value in inputs]
        if given != wanted:
            raise ExportError(f"{self.path} does not run on the given inputs: {given}", f"it takes: {wanted}")

    def _set(self, inputs: Sequence[Array]) -> None:
        import tvm

        tensors = [tvm.runtime.tensor(np.ascontiguousarray(value), self._cpu) for value in inputs]
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
        raise TargetUnavailableError(
            f"no TVM server answers at {address}: {_reason(error)}", "start one there: python -m tvm.exec.rpc_server"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
