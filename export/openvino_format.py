"""The format `openvino`, of Intel's runtime for its CPUs and GPUs: `model.xml` and `model.bin`.

The ONNX form is read by OpenVINO itself, in C++. Its Python package brings `openvino-telemetry`, which reports use
over the network when models are converted in Python; here neither is done, and the package is kept from being loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.core.errors import ExportError, MissingExtraError
from secateur.export.formats import Exporter, Options, Written, register
from secateur.export.runtime import Array, Runtime
from secateur.export.source import Source


@register
class OpenVino(Exporter):
    """Two files, read and run by OpenVINO; in fp16 the weights are stored in 16 bits, and the arithmetic stays
    float32 on processors that have no other."""

    name = "openvino"
    extra = "openvino"
    packages = ("openvino",)
    honours = frozenset({"precision", "static"})

    def write(self, source: Source, folder: Path, options: Options) -> list[Written]:
        half = options.precision == "fp16"
        tags = ["model", *(["fp16"] if half else []), *(["static"] if options.static else [])]
        path = folder / f"{'-'.join(tags)}.xml"
        openvino = import_openvino()
        try:
            model = openvino.Core().read_model(source.onnx(static=options.static))
            openvino.save_model(model, path, compress_to_fp16=half)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot read the model: {_reason(error)}", "try --to onnx") from error
        return [Written(path, (path.with_suffix(".bin"),))]

    def open(self, path: Path, threads: int = 1) -> OpenVinoModel:
        return OpenVinoModel(path, threads)


class OpenVinoModel(Runtime):
    """A model on this machine's CPU, computing in float32.

    Args:
        threads: of OpenVINO.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = Path(path)
        openvino = import_openvino()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if not self.path.is_file():
            raise ExportError(f"{self.path} does not exist", "give the path of a model's .xml file")
        try:
            self._model = openvino.Core().compile_model(self.path, "CPU", settings)
        except RuntimeError as error:
            raise ExportError(
                f"{self.path} is no model that OpenVINO can run: {_reason(error)}",
                "it may have no such operator, or the files are truncated: export again, or try the target cpu",
            ) from error
        self.tasks = tuple(value.get_any_name() for value in self._model.outputs)
        sizes = [value.partial_shape for value in self._model.inputs]
        fixed = bool(sizes) and len(sizes[0]) > 0 and sizes[0][0].is_static
        self.batch = sizes[0][0].get_length() if fixed else None
        self._request = self._model.create_infer_request()

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one batch.

        Raises:
            ExportError: inputs that the model does not take.
        """
        if len(inputs) != len(self._model.inputs):
            raise ExportError(
                f"{self.path} takes {len(self._model.inputs)} inputs, {len(inputs)} were given", "give them in order"
            )
        try:
            values = self._request.infer(dict(enumerate(inputs)))
        except RuntimeError as error:
            raise ExportError(
                f"{self.path} does not run on the given inputs: {_reason(error)}", "compare shapes and types"
            ) from error
        return {task: values[index].copy() for index, task in enumerate(self.tasks)}


def import_openvino() -> Any:
    """The package `openvino`, without its telemetry: what it cannot import, it replaces by a stub that does nothing.

    Raises:
        MissingExtraError
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    return openvino


def _reason(error: Exception) -> str:
    """OpenVINO's message without the places in its source, as one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "[ "))]
    return (told or lines or [""])[-1].removeprefix("-- ")[:200]
