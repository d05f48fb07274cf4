"""The format `tensorrt`: engines of NVIDIA's TensorRT, or of TensorRT for RTX, whichever is installed.

    model-sm86.engine, model-sm86.json

TensorRT for RTX builds ahead of time, without a GPU, one engine for each compute capability: those that are asked for,
or all for which it can (for 75 it has no products of matrices in float32). The other one builds for the GPU that is
here. Networks are strongly typed: an engine computes in float16 where the ONNX file does. An engine runs on a GPU of
its compute capability; elsewhere it stands without proof, and says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.errors import ExportError, MissingExtraError, TargetUnavailableError, no_routing
from secateur.core.files import write_json, writing
from secateur.export.formats import Exporter, Options, Written, register
from secateur.export.runtime import Array, Runtime
from secateur.export.source import Source

if TYPE_CHECKING:
    import torch

PACKAGES = ("tensorrt_rtx", "tensorrt")
"""In the order in which they are tried; both have the same interface."""
_AGAIN = "the files may be truncated: export it again"


@register
class TensorRt(Exporter):
    """`model-smCC.engine` for each compute capability; the batch is that of the example input."""

    name = "tensorrt"
    extra = "tensorrt"
    honours = frozenset({"precision", "capabilities"})

    def require(self) -> None:
        import_tensorrt()

    def write(self, source: Source, folder: Path, options: Options) -> list[Written]:
        half = options.precision == "fp16"
        onnx_file = source.onnx(static=True, half=half)
        tag = "-fp16" if half else ""
        done, refused = [], []
        for capability in wanted(options.capabilities):
            path = folder / f"model{tag}-{_label(capability)}.engine"
            try:
                done.append(_written(build(onnx_file, path, capability)))
            except ExportError as error:
                refused.append(error)
        if refused and (options.capabilities or not done):
            raise refused[0]
        for each in refused:
            warnings.warn(f"left out: {each.message}", stacklevel=2)
        return done

    def open(self, path: Path, threads: int = 1) -> TensorRtModel:
        return TensorRtModel(path)


@dataclass(frozen=True)
class Signature:
    """What is known of an engine without a GPU: names and shapes, layers of the network that it was built from, its
    size in bytes, and where it runs. `capability` is None for whatever GPU it was built on."""

    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    layers: int
    size_bytes: int
    capability: int | None
    library: str

    @classmethod
    def read(cls, path: Path) -> Signature:
        """The signature beside an engine; the engine must be of the size that it tells.

        Raises:
            ExportError
        """
        try:
            found = cls(**json.loads(signature_of(path).read_bytes()))
            size = path.stat().st_size
        except (OSError, ValueError, TypeError) as error:
            raise ExportError(f"{path} is no engine that Secateur built: {error}", _AGAIN) from error
        if size != found.size_bytes:
            raise ExportError(f"{path} has {size} bytes, it was built with {found.size_bytes}", _AGAIN)
        return found


def signature_of(path: Path) -> Path:
    """The file beside an engine that describes it."""
    return path.with_suffix(".json")


def import_tensorrt() -> Any:
    """The package that is installed.

    Raises:
        MissingExtraError
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise MissingExtraError("TensorRT", "tensorrt")


def offered() -> tuple[int, ...]:
    """Compute capabilities that engines can be built for without such a GPU; none with TensorRT proper."""
    kinds = getattr(import_tensorrt(), "ComputeCapability", None)
    names = [name.removeprefix("SM") for name in dir(kinds) if name.startswith("SM")]
    return tuple(sorted(int(name) for name in names if name.isdigit()))


def wanted(capabilities: Iterable[int]) -> tuple[int | None, ...]:
    """What to build for: the capabilities asked for, all that are offered, or the GPU that is here (None).

    Raises:
        ExportError: a capability that is not offered.
    """
    asked, known = tuple(dict.fromkeys(capabilities)), offered()
    for each in asked:
        if each not in known:
            raise ExportError(
                f"no engine can be built for compute capability {each}",
                f"this TensorRT builds for: {', '.join(map(str, known)) or 'the GPU that is here'}",
            )
    return asked or known or (None,)


def build(onnx_file: Path, path: Path, capability: int | None) -> Path:
    """Build an engine from an ONNX file of fixed shapes, and write its signature beside it.

    Raises:
        ExportError: an operator that TensorRT does not know, or a file that is no ONNX.
        TargetUnavailableError: TensorRT proper, and no GPU.
    """
    trt = import_tensorrt()
    if capability is None:
        require_gpu(path.name)
    log = _log(trt)
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        problem = _first_problem(parser, log)
        if "NonZero" in problem:
            raise no_routing(f"{trt.__name__} {trt.__version__}")
        raise ExportError(f"TensorRT cannot read {onnx_file.name}: {problem}", "try --to onnx")
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(
            f"TensorRT builds no engine for {_label(capability)}: {log.last()}",
            "name other cards with --capability, or try --precision fp16",
        )
    with writing(path) as temporary:
        temporary.write_bytes(memoryview(engine))
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    signature = Signature(
        {each.name: list(each.shape) for each in inputs},
        {each.name: list(each.shape) for each in outputs},
        network.num_layers,
        path.stat().st_size,
        capability,
        f"{trt.__name__} {trt.__version__}",
    )
    write_json(signature_of(path), asdict(signature))
    return path


class TensorRtModel(Runtime):
    """An engine on the GPU of this machine; memory and streams are torch's."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._signature = Signature.read(self.path)
        trt = import_tensorrt()
        self._check_gpu()
        log = _log(trt)
        engine = trt.Runtime(log).deserialize_cuda_engine(self.path.read_bytes())
        if engine is None:
            raise ExportError(f"{self.path} is no engine that TensorRT can load: {log.last()}", _AGAIN)
        self._engine, self._context = engine, engine.create_execution_context()
        self.inputs, self.tasks = tuple(self._signature.inputs), tuple(self._signature.outputs)
        self.batch = next(iter(self._signature.inputs.values()))[0] if self.inputs else None

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one batch.

        Raises:
            ExportError: inputs that the engine does not take.
        """
        return {name: tensor.cpu().numpy() for name, tensor in self.bound(inputs)().items()}

    def bound(self, inputs: Sequence[Array]) -> Callable[[], dict[str, torch.Tensor]]:
        """A call on inputs that lie on the GPU from now on; its outputs are complete, and stay there, when it returns.

        Raises:
            ExportError: inputs that the engine does not take.
        """
        import torch

        shapes = [list(value.shape) for value in inputs]
        if shapes != list(self._signature.inputs.values()):
            raise ExportError(f"{self.path} takes inputs {self._signature.inputs}", f"given were: {shapes}")
        given = [torch.from_numpy(value).cuda().contiguous() for value in inputs]
        outputs = {name: torch.empty(shape, device="cuda") for name, shape in self._signature.outputs.items()}
        tensors = dict(zip(self.inputs, given, strict=True)) | outputs
        stream = torch.cuda.current_stream()

        def call() -> dict[str, torch.Tensor]:
            for name, tensor in tensors.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            self._context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            return outputs

        return call

    def _check_gpu(self) -> None:
        here, made = require_gpu(self.path.name), self._signature.capability
        if made is not None and made != here:
            raise TargetUnavailableError(
                f"{self.path.name} was built for compute capability {made}, this GPU has {here}",
                f"export it again with --capability {here}",
            )


def require_gpu(what: str) -> int:
    """The compute capability of the GPU that is here, 86 for 8.6.

    Raises:
        TargetUnavailableError
    """
    import torch

    if not torch.cuda.is_available():
        raise TargetUnavailableError(f"{what} needs an NVIDIA GPU, and torch sees none", "run it on a machine with one")
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _log(trt: Any) -> Any:
    """A logger that collects errors instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.messages.append(message)

        def last(self) -> str:
            return " ".join((self.messages or ["no reason was given"])[-1].split())[:200]

    return Log()


def _first_problem(parser: Any, log: Any) -> str:
    if not parser.num_errors:
        return str(log.last())
    error = parser.get_error(0)
    return " ".join(f"{error.node_operator()} {error.desc()}".split())[:200]


def _label(capability: int | None) -> str:
    return "here" if capability is None else f"sm{capability}"


def _written(path: Path) -> Written:
    signature = Signature.read(path)
    return Written(path, (signature_of(path),), asdict(signature))
