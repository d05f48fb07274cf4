"""The `cpu:tvm` backend, and others like it: an ONNX file is first made into another format, which is then measured
in a process of its own.

    measure_compiled({"before": "a.onnx", "after": "b.onnx"}, "tvm", against="before")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from secateur.core import machine
from secateur.core.costs import Profile
from secateur.core.scratch import Scratch
from secateur.export import formats
from secateur.export.load import load_formats
from secateur.export.onnx_session import open_session
from secateur.export.runtime import Array
from secateur.targets.apart import Artefact, sample_apart
from secateur.targets.cpu import Shapes, make_inputs
from secateur.targets.measured import profiles_of
from secateur.targets.onnx_layers import count_parameters

Maker = Callable[[Path, Path, Mapping[str, Array]], Path]
"""`maker(onnx_file, folder, inputs)` writes the artefact into the folder and returns its path."""


def measure_compiled(
    files: Mapping[str, str | os.PathLike[str]],
    runtime: str,
    *,
    threads: int | None = 1,
    batch: int = 1,
    shapes: Shapes | None = None,
    against: str | None = None,
    warmup_s: float = 0.3,
    limit_s: float = 5.0,
    precision: float = 0.02,
    target: str = "",
) -> dict[str, Profile]:
    """Latency of ONNX files on this CPU under another runtime, see `secateur.targets.cpu.measure_onnx`.

    Raises:
        MissingExtraError: the runtime is not installed.
        ExportError: a file that is missing, truncated, not ONNX, or cannot be expressed in the runtime's format.
    """
    load_formats()
    formats.get(runtime).require()
    threads = threads or len(machine.cores())
    with Scratch() as temporary:
        artefacts, inputs, params = {}, {}, {}
        for number, (name, file) in enumerate(files.items()):
            path, folder = Path(file), Path(temporary) / str(number)
            folder.mkdir()
            feed = make_inputs(open_session(path).get_inputs(), path, batch, shapes or {})
            inputs[name], params[name] = list(feed.values()), count_parameters(path)
            artefacts[name] = Artefact(runtime, MAKERS[runtime](path, folder, feed))
        samples = sample_apart(
            artefacts, inputs, threads=threads, warmup_s=warmup_s, limit_s=limit_s, precision=precision
        )
    backend = f"{runtime} {_version(runtime)}, threads {threads}"
    return profiles_of(samples, target or f"cpu:{runtime}", backend, inputs, params=params, against=against)


def _tvm(onnx_file: Path, folder: Path, inputs: Mapping[str, Array]) -> Path:
    from secateur.export.tvm_format import compile_onnx

    return compile_onnx(onnx_file, folder / "model.tvm.so", shapes={name: each.shape for name, each in inputs.items()})


def _version(runtime: str) -> str:
    import importlib.metadata

    return importlib.metadata.version({"tvm": "apache-tvm"}.get(runtime, runtime))


MAKERS: dict[str, Maker] = {"tvm": _tvm}
"""The runtimes that this module serves."""
