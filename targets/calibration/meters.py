"""Meters: how long one operator, or a whole sketch, takes in a runtime on this machine, in milliseconds.

Operators are timed inside of a small network, where their input has the layout that the runtime gives it there; once
again and again, with their weights in the caches, and once after the caches were filled with something else, as a
large network leaves them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from secateur.core.errors import DeviceError, MissingExtraError
from secateur.core.scratch import Scratch
from secateur.profiles.latency.operators import Operator
from secateur.targets.calibration.sketch import Sketch, operator_sketch

_LEAST_RUNS, _MOST_RUNS, _PATIENCE_S = 7, 60, 0.03
_COLD_RUNS = 5
_QUIET_QUANTILE = 0.25
"""Of repeated times, whose upper half tells of the machine rather than of the operator."""
_LARGEST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_MIB = 2**20


class Meter(Protocol):
    """A runtime that operators and sketches are timed in."""

    @property
    def version(self) -> str: ...

    def operator(self, operator: Operator) -> tuple[float, float]:
        """(with warm caches, with cold ones)."""
        ...

    def model(self, sketch: Sketch) -> float: ...


class OnnxRuntimeMeter:
    """ONNX Runtime, one thread inside of an operator unless told otherwise; operators by its own profiler."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self.version = f"onnxruntime {importlib.metadata.version('onnxruntime')}, threads {threads}"

    def operator(self, operator: Operator) -> tuple[float, float]:
        found = self._nodes(operator_sketch(operator))
        if operator.kind in ("elementwise", "activation"):  # computed along with the convolution before it, or not
            bare = self._nodes(operator_sketch(operator, bare=True))
            warm, cold = (_computing(times) - _computing(less) for times, less in zip(found, bare, strict=True))
        else:
            warm, cold = map(_inside, found)
        return max(warm, 1e-4), max(cold, warm, 1e-4)

    def model(self, sketch: Sketch) -> float:
        session, feed = self._session(sketch, None)
        return _quiet(lambda: session.run(None, feed))

    def _session(self, sketch: Sketch, prefix: Path | None) -> tuple[Any, dict[str, Any]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 3
        if prefix is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(prefix)
        session = onnxruntime.InferenceSession(sketch.onnx(), options, providers=["CPUExecutionProvider"])
        noise = np.random.default_rng(0).standard_normal((1, *sketch.input.shape), np.float32)
        return session, {"x": noise}

    def _nodes(self, sketch: Sketch) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of each node that the runtime made of a sketch, with warm and with cold caches."""
        with Scratch() as folder:
            session, feed = self._session(sketch, Path(folder) / "p")
            start, runs = time.perf_counter(), 0
            while runs < _LEAST_RUNS or (runs < _MOST_RUNS and time.perf_counter() - start < _PATIENCE_S):
                session.run(None, feed)
                runs += 1
            for _ in range(_COLD_RUNS):
                fill_caches()
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        times: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
        warm = {name: _steady(values[2:runs]) for name, values in times.items()}
        return warm, {name: _steady(values[runs:]) for name, values in times.items()}


def _computing(times: dict[str, float]) -> float:
    """Of all nodes but those that only change a layout."""
    return sum(value for name, value in times.items() if "eorder" not in name)


def _inside(times: dict[str, float]) -> float:
    """Of what a sketch has between its own edges."""
    around = ("pre", "pre2", "post", "post2", "join")
    reorders = sorted(value for name, value in times.items() if "eorder" in name)
    inside = sum(value for name, value in times.items() if name.split("_nchwc")[0].split(".")[0] not in around)
    return inside - sum(reorders[:2])  # the smallest are those of the edges


class NcnnMeter:
    """ncnn on this machine's CPU in 32 bits; operators by extracting their input before the clock starts."""

    def __init__(self, threads: int = 1) -> None:
        if importlib.util.find_spec("ncnn") is None:
            raise MissingExtraError("ncnn", "mobile")
        self._threads = threads
        self.version = f"ncnn {importlib.metadata.version('ncnn')}, threads {threads}"

    def operator(self, operator: Operator) -> tuple[float, float]:
        sketch = operator_sketch(operator)
        net, image = self._net(sketch)
        first = ["x"] if "pre" not in sketch.ncnn() else ["pre", "pre2"] if len(operator.inputs) > 1 else ["pre"]
        last = "op.relu" if operator.kind == "conv" else "op.mul" if operator.function in ("swish", "gelu") else "op"

        def times() -> tuple[float, float]:
            with net.create_extractor() as run:
                run.input("x", image)
                kept = [run.extract(name, 1) for name in first]
                start = time.perf_counter()
                kept.append(run.extract(last, 1))
                computed = time.perf_counter()
                kept.append(run.extract(last, 1))  # what asking alone takes
                return computed - start, time.perf_counter() - computed

        asking = min(times()[1] for _ in range(_LEAST_RUNS))
        warm, cold = 1e3 * _repeat(lambda: times()[0] - asking), 1e3 * _cold(lambda: times()[0] - asking)
        return max(warm, 1e-4), max(cold, warm, 1e-4)

    def model(self, sketch: Sketch) -> float:
        net, image = self._net(sketch)

        def once() -> float:
            start = time.perf_counter()
            with net.create_extractor() as run:
                run.input("x", image)
                run.extract(sketch.output.name)
            return time.perf_counter() - start

        return 1e3 * _repeat(once, patience_s=0.2)

    def _net(self, sketch: Sketch) -> tuple[Any, Any]:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads, net.opt.use_vulkan_compute = self._threads, False
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
            if hasattr(net.opt, f"use_{name}"):
                setattr(net.opt, f"use_{name}", False)
        if net.load_param_mem(sketch.ncnn()) != 0:
            raise DeviceError("ncnn does not take the networks of the calibration", "update ncnn")
        net.load_model(ncnn.DataReaderFromEmpty())
        values = np.full(sketch.input.shape, 0.1, np.float32)
        return net, ncnn.Mat(values).clone()


METERS: dict[str, Callable[[int], Meter]] = {"cpu": OnnxRuntimeMeter, "mobile": NcnnMeter}
"""Targets whose operators are measured here."""


def _steady(times: list[float]) -> float:
    """The mean of the faster half but the fastest tenth: the profiler counts in microseconds, means in parts."""
    ordered = sorted(times)
    return float(np.mean(ordered[len(ordered) // 10 : max(len(ordered) // 2, 1)] or ordered))


def _quiet(call: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return 1e3 * _repeat(once, patience_s=0.2)


def _repeat(once: Callable[[], float], patience_s: float = _PATIENCE_S) -> float:
    once()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _LEAST_RUNS or (len(times) < 10 * _MOST_RUNS and time.perf_counter() - start < patience_s):
        times.append(once())
    return float(np.quantile(times, _QUIET_QUANTILE))


def _cold(once: Callable[[], float]) -> float:
    times = []
    for _ in range(_COLD_RUNS):
        fill_caches()
        times.append(once())
    return float(np.quantile(times, _QUIET_QUANTILE))


def fill_caches() -> None:
    """Read more than the largest cache holds, so that it holds nothing else."""
    _filling().sum()


@cache
def _filling() -> Any:
    try:
        size = int(_LARGEST_CACHE.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        size = 32 * _MIB
    return np.ones(min(2 * size, 256 * _MIB) // 8)
