"""The `gpu` backend: the NVIDIA GPU of this machine, with the first of its runtimes that takes every model.

    measure_gpu({"before": Network(Path("a.onnx")), "after": Network(Path("b.onnx"))}, against="before")

TensorRT, else ONNX Runtime's CUDA provider, else torch. Inputs lie on the GPU before the clock starts and outputs stay
there: what is timed is one call, and the wait for its end. Models that are compared take turns in one process.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from secateur.core.costs import Profile
from secateur.core.device import moved
from secateur.core.errors import DeviceError, ExportError, MissingExtraError, TargetUnavailableError
from secateur.core.inputs import samples
from secateur.core.predict import predict
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export.onnx_session import open_session, runtime_reason
from secateur.export.runtime import Array
from secateur.export.tensorrt_format import TensorRtModel, build, import_tensorrt, offered, require_gpu
from secateur.profiles.timing import Call, sample
from secateur.targets.cpu import Shapes, make_inputs
from secateur.targets.measured import profiles_of
from secateur.targets.nvidia import gpus

_REASONS = (DeviceError, ExportError, MissingExtraError, TargetUnavailableError)


@dataclass(frozen=True)
class Network:
    """A model to measure: its ONNX file, and as torch has it where there is more than the file."""

    onnx: Path
    workload: Callable[[], Workload] | None = None

    def inputs(self, batch: int, shapes: Shapes) -> dict[str, Array]:
        """By name, as the file describes them."""
        return make_inputs(open_session(self.onnx).get_inputs(), self.onnx, batch, shapes)


@dataclass(frozen=True)
class How:
    """How each network is run: samples of a call, shapes that ONNX files leave open, and where; tests run what they
    can on the CPU."""

    batch: int = 1
    shapes: Shapes | None = None
    device: str = "cuda"


Engine = Callable[[Network, Path, How], Call]
"""Makes a network ready in an empty folder; what it gives computes once and waits for the end."""


def measure_gpu(
    networks: Mapping[str, Network],
    *,
    batch: int = 1,
    shapes: Shapes | None = None,
    against: str | None = None,
    target: str = "gpu",
    device: str = "cuda",
    **how: Any,
) -> dict[str, Profile]:
    """Latency of networks on the GPU of this machine.

    Args:
        batch: samples of one call.
        shapes: input name → shape, for ONNX files that leave more than the batch open.
        against: name of the network that `speedup_against` of the others refers to.
        how: see `secateur.profiles.timing.sample`.

    Raises:
        TargetUnavailableError: no runtime of the GPU takes all of them; the message says why, runtime by runtime.
    """
    reasons = []
    for runtime, engine in ENGINES.items():
        with Scratch() as temporary:
            try:
                calls = _ready(networks, engine, Path(temporary), How(batch, shapes, device))
            except _REASONS as error:
                reasons.append(f"{runtime}: {error.message}")
                continue
            samples = sample(calls, **how)
        backend = f"{_version(runtime)} on {next(iter(gpus()), device)}"
        inputs = {name: list(network.inputs(batch, shapes or {}).values()) for name, network in networks.items()}
        return profiles_of(samples, target, backend, inputs, against=against)
    raise TargetUnavailableError(
        "no runtime of the GPU takes this model: " + "; ".join(reasons),
        'install one, for example: pip install "secateur[tensorrt]"',
    )


def _ready(networks: Mapping[str, Network], engine: Engine, folder: Path, how: How) -> dict[str, Call]:
    calls = {}
    for number, (name, network) in enumerate(networks.items()):
        place = folder / str(number)
        place.mkdir()
        calls[name] = engine(network, place, how)
        try:
            calls[name]()
        except Exception as error:  # runtimes' errors share no base class
            raise ExportError(
                f"{network.onnx.name} does not run: {runtime_reason(error)}", "give the shapes of its inputs"
            ) from error
    return calls


def _tensorrt(network: Network, folder: Path, how: How) -> Call:
    """An engine for the GPU that is here, in the number format of the file."""
    import_tensorrt()
    here, inputs = require_gpu("TensorRT"), network.inputs(how.batch, how.shapes or {})
    file = _of_fixed_shapes(network.onnx, inputs, folder / "model.onnx")
    engine = build(file, folder / "model.engine", here if here in offered() else None)
    return TensorRtModel(engine).bound(list(inputs.values()))


def _of_fixed_shapes(path: Path, inputs: Mapping[str, Array], to: Path) -> Path:
    """A copy of an ONNX file, with its weights, whose inputs have these shapes."""
    model = onnx.load(path)
    for value in model.graph.input:
        if value.name in inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True):
                dim.dim_value = size
    onnx.save(model, to)
    return to


def _onnxruntime(network: Network, _: Path, how: How) -> Call:
    """ONNX Runtime; operators without a kernel for the GPU run on the CPU, as it places them."""
    import onnxruntime

    provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[how.device]
    if provider not in onnxruntime.get_available_providers():
        raise TargetUnavailableError("it is installed without CUDA", "pip install onnxruntime-gpu")
    session = open_session(network.onnx, provider=provider)
    if provider not in session.get_providers():
        raise TargetUnavailableError("its CUDA libraries do not load", "see what onnxruntime-gpu needs")
    binding = session.io_binding()
    for name, value in network.inputs(how.batch, how.shapes or {}).items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, how.device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, how.device)
    return lambda: session.run_with_iobinding(binding)


def _torch(network: Network, _: Path, how: How) -> Call:
    """The model as torch runs it, without a compiler."""
    if network.workload is None:
        raise ExportError("it runs no ONNX files", "name a bundle or a workload")
    if how.device == "cuda" and not torch.cuda.is_available():
        raise TargetUnavailableError("it sees no GPU", "install a torch with CUDA")
    workload = network.workload()
    model = copy.deepcopy(workload.model).to(how.device).eval()
    inputs = moved(samples(workload.example_input, how.batch), how.device)

    def call() -> None:
        with torch.inference_mode():
            predict(model, inputs, workload.tasks)
        if how.device == "cuda":
            torch.cuda.synchronize()

    return call


ENGINES: dict[str, Engine] = {"tensorrt": _tensorrt, "onnxruntime": _onnxruntime, "torch": _torch}
"""Runtimes in the order in which they are tried."""
_PACKAGES = {
    "tensorrt": ("tensorrt_rtx", "tensorrt"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "torch": ("torch",),
}


def _version(runtime: str) -> str:
    for package in _PACKAGES[runtime]:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return runtime
