"""The format `tvm`: a shared library that TVM compiled, with the names and shapes of its inputs and tasks beside it.

    model.tvm.so, model.tvm.json

For CPUs, kernels, lowering and schedule are ours (tvm_kernels.py, tvm_lower.py, tvm_schedule.py); for GPUs, TVM's own.
The library holds native code for one kind of processor: this machine's CPU, or another one named by `arch`
(tvm_targets.py). Loading it runs that code.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core import machine
from secateur.core.errors import ExportError, MissingExtraError, SecateurError, TargetUnavailableError, no_routing
from secateur.core.files import write_json, writing
from secateur.export.formats import Exporter, Options, Written, register
from secateur.export.native_output import captured
from secateur.export.runtime import Array, Runtime
from secateur.export.source import Source
from secateur.export.tvm_onnx import fixed, simplified
from secateur.export.tvm_targets import CROSS, GPU, check_arch, check_gpu, is_gpu, target_of, vectors

_AGAIN = "the files may be truncated: export it again"
_ONE_CORE_EACH = -2
"""TVM's mode of a thread pool whose threads are bound to one core each, of those that are given."""


@register
class Tvm(Exporter):
    """`model.tvm.so`, compiled with our schedule, for the batch of the example input."""

    name = "tvm"
    extra = "tvm"
    packages = ("tvm", "tvm_ffi")
    honours = frozenset({"arch", "trials"})

    def write(self, source: Source, folder: Path, options: Options) -> list[Written]:
        tag = f"-{options.arch}" if options.arch else ""
        path = compile_onnx(
            source.onnx(static=True), folder / f"model{tag}.tvm.so", options.arch, trials=options.trials
        )
        signature = Signature.read(path)
        return [Written(path, (signature_of(path),), {"cpu": signature.cpu, "tvm": signature.version})]

    def open(self, path: Path, threads: int = 1) -> TvmModel:
        return TvmModel(path, threads)


@dataclass(frozen=True)
class Signature:
    """What a library takes and gives, and the kind of machine and processor that it was compiled for."""

    inputs: list[tuple[list[int], str]]
    tasks: list[str]
    machine: str
    cpu: str
    version: str
    size_bytes: int

    @classmethod
    def read(cls, path: Path) -> Signature:
        """The signature beside a library.

        Raises:
            ExportError
        """
        file = signature_of(path)
        try:
            found = cls(**json.loads(file.read_bytes()))
            shapes = [[*map(int, shape)] for shape, dtype in found.inputs if np.dtype(dtype)]
            if not all(shapes) or not all(isinstance(task, str) for task in found.tasks):
                raise ValueError("a part is missing")
            if (size := path.stat().st_size) != found.size_bytes:  # to load half a library would end this process
                raise ValueError(f"the library has {size} bytes instead of {found.size_bytes}")
            return found
        except (OSError, ValueError, TypeError) as error:
            raise ExportError(f"{path} and {file.name} are no model that TVM compiled: {error}", _AGAIN) from error


def signature_of(path: Path) -> Path:
    """The file beside a library that describes it."""
    return path.with_suffix(".json")


def compile_onnx(
    onnx_file: Path,
    path: Path,
    arch: str = "",
    shapes: Mapping[str, Sequence[int]] | None = None,
    trials: int = 0,
) -> Path:
    """Compile an ONNX file for fixed shapes.

    Args:
        shapes: of inputs that the file leaves open.
        trials: of tuning, see tvm_tune.py.
        arch: of the processor, see tvm_targets.py; this machine's CPU when empty.

    Raises:
        ExportError: an operator that TVM does not import, an open shape, no compiler for `arch`.
    """
    import onnx

    check_arch(arch)
    model = fixed(_load(onnx_file), shapes or {})
    initial = {each.name for each in model.graph.initializer}
    inputs = [
        ([dim.dim_value for dim in each.type.tensor_type.shape.dim], each.type.tensor_type.elem_type, each.name)
        for each in model.graph.input
        if each.name not in initial
    ]
    if any(node.op_type == "NonZero" for node in model.graph.node):
        raise no_routing("TVM")
    for shape, _, name in inputs:
        if not all(shape):
            raise ExportError(
                f"{onnx_file}: input {name} has open dimensions",
                "TVM compiles for fixed shapes: give one with --static",
            )
    target = target_of(arch)
    executable = build(model, target, onnx_file, 0 if arch else trials)
    with writing(path) as temporary:
        library = temporary.with_name(f"{temporary.name}.so")  # the linker asks for the suffix
        try:
            _link(executable, library, arch)
            library.replace(temporary)
        finally:
            library.unlink(missing_ok=True)
    names = [(shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name) for shape, kind, _ in inputs]
    signature = Signature(
        names,
        [each.name for each in model.graph.output],
        GPU if is_gpu(arch) else arch or platform.machine(),
        arch if is_gpu(arch) else str(target.attrs["mcpu"]),
        _version(),
        path.stat().st_size,
    )
    write_json(signature_of(path), asdict(signature))
    return path


def build(model: Any, target: Any, name: Path, trials: int = 0) -> Any:
    """An executable of an onnx.ModelProto: for CPUs scheduled by our rules and by what tuning found, for GPUs by TVM's.

    Args:
        trials: to find more, on this machine.

    Raises:
        ExportError: what TVM cannot import or compile.
    """
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from secateur.export import tvm_tune
    from secateur.export.tvm_lower import lower

    with _quiet():
        try:
            with captured():
                module = from_onnx(simplified(model))
                if target.kind.name == GPU:
                    return relax.build(relax.transform.DecomposeOpsForInference()(module), target=target)
            cpu, tuned = vectors(target), tvm_tune.database(str(target.attrs["mcpu"]), _version())
            if trials:
                recorder = tvm_tune.Recorder(tvm_tune.known_tiles(tuned), cpu)
                lower(module, target, cpu, recorder)
                tvm_tune.tune(recorder, tuned, target, cpu, trials)
            with captured():
                return relax.build(lower(module, target, cpu, tvm_tune.chooser(tuned, cpu)), target=target)
        except SecateurError:
            raise
        except Exception as error:  # TVM raises errors of many unrelated types
            raise ExportError(f"TVM cannot compile {name.name}: {_reason(error)}", "try --to onnx") from error


class TvmModel(Runtime):
    """A compiled library on this machine's CPU, or its first GPU.

    Args:
        threads: of TVM's pool, which all libraries of this process share.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = Path(path)
        self._signature = Signature.read(self.path)
        self._check_machine()
        self.tasks = tuple(self._signature.tasks)
        self.batch = self._signature.inputs[0][0][0] if self._signature.inputs else None
        import tvm
        from tvm import relax

        _thread_pool(threads)
        try:
            library = tvm.runtime.load_module(str(self.path))
            device = tvm.cuda() if self._signature.machine == GPU else tvm.cpu()
            self._main = relax.VirtualMachine(library, device)["main"]
        except Exception as error:  # of many unrelated types
            raise ExportError(f"{self.path} is no library that TVM can load: {_reason(error)}", _AGAIN) from error
        self._inputs = [tvm.runtime.empty(shape, dtype, device) for shape, dtype in self._signature.inputs]

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one batch.

        Raises:
            ExportError: inputs that the model does not take.
        """
        wanted = [(tuple(shape), dtype) for shape, dtype in self._signature.inputs]
        given = [(value.shape, value.dtype.name) for value in inputs]
        if given != wanted:
            raise ExportError(f"{self.path} does not run on the given inputs: {given}", f"it takes: {wanted}")
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copyfrom(np.ascontiguousarray(value))
        outputs = self._main(*self._inputs)
        several = [outputs] if hasattr(outputs, "numpy") else list(outputs)
        return {task: value.numpy() for task, value in zip(self.tasks, several, strict=True)}

    def _check_machine(self) -> None:
        """Native code for another CPU would end this process."""
        made = self._signature
        if made.machine == GPU:
            check_gpu(self.path, made.cpu)
            return
        if made.machine != platform.machine():
            raise TargetUnavailableError(
                f"{self.path.name} was compiled for {made.machine}, this is {platform.machine()}", "run it there"
            )
        here = str(target_of().attrs["mcpu"])
        if made.cpu != here:
            raise TargetUnavailableError(
                f"{self.path.name} was compiled for a CPU of kind {made.cpu}, this is {here}", "export it again here"
            )


def _thread_pool(threads: int) -> None:
    """Set up TVM's threads, one on each core that this process may use; the thread that calls TVM is left free.

    Left to itself TVM binds the calling thread to the first core of the machine, and for good: other runtimes of the
    process, and processes started later, would have that one core for all their threads.
    """
    import tvm

    os.environ.setdefault("TVM_BIND_THREADS", "0")
    tvm.get_global_func("runtime.config_threadpool")(_ONE_CORE_EACH, threads, [str(core) for core in machine.cores()])


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return model
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise ExportError(f"{path} is not an ONNX model: {_reason(error)}", "copy or export it again") from error


def _link(executable: Any, library: Path, arch: str) -> None:
    import shutil

    from tvm.support import cc

    across = arch in CROSS
    compiler = CROSS[arch][1] if across else cc.get_cc()
    if compiler is None or shutil.which(compiler) is None:
        package = f"g++-{arch}-linux-gnu" if across else "g++"
        raise ExportError(
            f"{compiler or 'a C++ compiler'} is not installed", f"on Debian and Ubuntu: apt-get install {package}"
        )
    try:
        executable.export_library(str(library), fcompile=cc.cross_compiler(compiler) if across else None)
    except RuntimeError as error:
        raise ExportError(f"{compiler} cannot link the library: {_reason(error)}", "see --debug") from error


def _version() -> str:
    try:
        import tvm
    except ImportError as error:
        raise MissingExtraError("tvm", "tvm") from error
    return str(tvm.__version__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    """The last telling line of one of TVM's errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]
