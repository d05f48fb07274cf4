"""The `cpu` backend: any ONNX file, measured on this machine with ONNX Runtime.

    measure_onnx({"before": "a.onnx", "after": "b.onnx"}, against="before")

Files that are compared are measured interleaved. Inputs are made from what the file itself says of them.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core import machine
from secateur.core.costs import LayerProfile, Profile
from secateur.core.errors import ExportError
from secateur.export.onnx_session import open_session, runtime_reason
from secateur.profiles.timing import sample
from secateur.targets.measured import profiles_of
from secateur.targets.onnx_layers import count_parameters, profile_layers

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
Shapes = Mapping[str, Sequence[int]]


def measure_onnx(
    files: Mapping[str, str | os.PathLike[str]],
    *,
    threads: int | None = 1,
    batch: int = 1,
    shapes: Shapes | None = None,
    against: str | None = None,
    layers: bool = False,
    warmup_s: float = 0.3,
    limit_s: float = 5.0,
    precision: float = 0.02,
    target: str = "cpu",
) -> dict[str, Profile]:
    """Latency of ONNX files on this CPU, in this process.

    Args:
        files: name → path.
        threads: of ONNX Runtime inside of one operator (operators run one after another); all cores when None.
        batch: size of the first dimension where a file leaves it open.
        shapes: input name → shape, for inputs with other open dimensions.
        against: name of the file that `speedup_against` of the others refers to.
        layers: also give each layer's latency, from ONNX Runtime's own profiler in a separate run.
        warmup_s, limit_s, precision: see `secateur.profiles.timing.sample`.

    Returns:
        name → profile with source "measured". `params` counts the floating-point weights in the file, after what the
        exporter folded or shared; FLOPs and peak memory are not known from here.

    Raises:
        ExportError: a file that is missing, truncated, not ONNX, or has inputs of unknown shape.
    """
    threads = threads or len(machine.cores())
    runs = {name: _Run(path, threads, batch, shapes or {}) for name, path in files.items()}
    calls = {name: run.call for name, run in runs.items()}
    samples = sample(calls, warmup_s=warmup_s, limit_s=limit_s, precision=precision)
    backend = f"onnxruntime {importlib.metadata.version('onnxruntime')}, threads {threads}"
    inputs, params = {}, {}
    for name, run in runs.items():
        inputs[name], params[name] = list(run.feed.values()), count_parameters(run.path)
    profiles = profiles_of(samples, target, backend, inputs, params=params, against=against)
    return {name: replace(profiles[name], layers=run.layers() if layers else ()) for name, run in runs.items()}


class _Run:
    """One file with its session and input, ready to be called."""

    def __init__(self, path: str | os.PathLike[str], threads: int, batch: int, shapes: Shapes) -> None:
        self.path = Path(path)
        self._threads = threads
        self._session = open_session(self.path, threads)
        self.feed = make_inputs(self._session.get_inputs(), self.path, batch, shapes)
        self.call = partial(self._session.run, None, self.feed)
        try:
            self.call()
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ExportError(
                f"{self.path} does not run on inputs made from its own description: {runtime_reason(error)}",
                "give the shapes of its inputs",
            ) from error

    def layers(self) -> tuple[LayerProfile, ...]:
        return profile_layers(self.path, self.feed, self._threads)


def inputs_of(path: Path, shapes: Shapes, batch: int = 1) -> list[np.ndarray[Any, Any]]:
    """Inputs for an ONNX file, in its order; see `make_inputs`."""
    return list(make_inputs(open_session(path).get_inputs(), path, batch, shapes).values())


def make_inputs(inputs: Sequence[Any], path: Path, batch: int, shapes: Shapes) -> dict[str, np.ndarray[Any, Any]]:
    """An input for each `NodeArg` of a session: normal noise for floats, ones for whatever counts or indexes.

    Raises:
        ExportError: an open dimension that is not the batch, a fixed batch of another size, an unknown type.
    """
    unknown = set(shapes) - {value.name for value in inputs}
    if unknown:
        raise ExportError(
            f"{path} has no input {unknown.pop()}", f"its inputs are: {', '.join(value.name for value in inputs)}"
        )
    if batch > 1 and not any(value.shape and _is_open(value.shape[0]) for value in inputs):
        raise ExportError(f"{path} fixes its batch size", f"measure it without asking for a batch of {batch}")
    noise = np.random.default_rng(0)
    return {value.name: _values(value, _shape(value, path, batch, shapes), noise, path) for value in inputs}


def _values(value: Any, shape: tuple[int, ...], noise: np.random.Generator, path: Path) -> np.ndarray[Any, Any]:
    dtype = _TYPES.get(value.type)
    if dtype is None:
        raise ExportError(
            f"{path}: input {value.name} has type {value.type}", f"values can be made for: {', '.join(_TYPES)}"
        )
    if np.issubdtype(dtype, np.floating):
        return noise.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


def _shape(value: Any, path: Path, batch: int, shapes: Shapes) -> tuple[int, ...]:
    if value.name in shapes:
        return tuple(shapes[value.name])
    shape = [batch if axis == 0 and _is_open(size) else size for axis, size in enumerate(value.shape)]
    if any(map(_is_open, shape)):
        example = [1 if _is_open(size) else size for size in shape]
        typed = "x".join(map(str, example))
        raise ExportError(
            f"{path}: input {value.name} has open dimensions: {value.shape}",
            f'give its shape: --shape {value.name}={typed}, or in Python shapes={{"{value.name}": {example}}}',
        )
    return tuple(shape)


def _is_open(size: Any) -> bool:
    return not isinstance(size, int) or size <= 0
