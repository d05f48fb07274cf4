"""An ONNX file, opened with ONNX Runtime and called like the torch model it came from.

OnnxModel("model.onnx").predict(images)    # {task: tensor}
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core import machine
from secateur.core.errors import ExportError
from secateur.export.runtime import Array, Runtime, predictor

if TYPE_CHECKING:
    import torch

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""The node property in which torch's exporter notes the module path, as the text of a list."""


def open_session(
    path: str | os.PathLike[str],
    threads: int = 1,
    profile_prefix: Path | None = None,
    provider: str = "CPUExecutionProvider",
) -> Any:
    """An `onnxruntime.InferenceSession`: all graph optimisations, one operator at a time.

    Args:
        threads: inside of one operator. Threads stop spinning after each call, so that they take nothing from
            whatever is measured next.
        profile_prefix: where ONNX Runtime is to write its profile, when the session ends it.
        provider: what runs the operators that it has kernels for; the CPU runs the others.

    Raises:
        ExportError: the file is missing, truncated, or no ONNX model that this ONNX Runtime can run.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise ExportError(f"{path} does not exist", "give the path of an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    try:
        # The fallback would try the same again, and print about it.
        session = onnxruntime.InferenceSession(
            os.fspath(path),
            options,
            providers=list(dict.fromkeys((provider, "CPUExecutionProvider"))),
            disabled_optimizers=["NchwcTransformer"] if _holds_float16(Path(path)) else [],
            enable_fallback=0,
        )
        for value in [*session.get_inputs(), *session.get_outputs()]:
            _ = value.name, value.shape  # text that may be no UTF-8 in a damaged file
        return session
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = runtime_reason(error)
        raise ExportError(f"{path} is not an ONNX model that ONNX Runtime can run: {reason}", _hint(reason)) from error


def _hint(reason: str) -> str:
    """What to do about a model that does not load."""
    if "Could not find an implementation" in reason:
        return "it has no kernel for that operator and number format: export the model in float32"
    return "the file may be truncated: copy or export it again"


def _holds_float16(path: Path) -> bool:
    """Whether a weight is in float16: there ONNX Runtime 1.32's blocked layout for convolutions, which is for float32,
    ends the process (seen on a vision transformer)."""
    import onnx

    weights = onnx.load(path, load_external_data=False).graph.initializer
    return any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights)


class OnnxModel(Runtime):
    """A session that takes the inputs of the torch model and returns its predictions by task.

    Args:
        threads: of ONNX Runtime; all cores of this process when None.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self.path = Path(path)
        self._session = open_session(path, threads or len(machine.cores()))
        self.inputs: Sequence[str] = [value.name for value in self._session.get_inputs()]
        self.tasks: Sequence[str] = [value.name for value in self._session.get_outputs()]
        first = self._session.get_inputs()[0].shape[:1] if self.inputs else []
        self.batch = first[0] if first and isinstance(first[0], int) else None

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one batch.

        Raises:
            ExportError: inputs that the model does not take.
        """
        if len(inputs) != len(self.inputs):
            raise ExportError(
                f"{self.path} takes {len(self.inputs)} inputs, {len(inputs)} were given",
                f"its inputs are: {', '.join(self.inputs)}",
            )
        try:
            outputs = self._session.run(None, dict(zip(self.inputs, inputs, strict=True)))
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ExportError(
                f"{self.path} does not run on the given inputs: {runtime_reason(error)}", "compare shapes and types"
            ) from error
        return dict(zip(self.tasks, outputs, strict=True))

    def predict(self, inputs: Any) -> dict[str, torch.Tensor]:
        """`run`, called as the torch model is: with a tensor, a tuple or a dict of them."""
        return predictor(self)(inputs)


def runtime_reason(error: Exception) -> str:
    """ONNX Runtime's message without its prefixes, as one line."""
    text = " ".join(str(error).split()).rsplit("failed:", 1)[-1]
    text = re.sub(r"\S*onnxruntime_src/\S+ .*?\) ", "", text)  # file, line and function of its source
    return text.split(" : ", 3)[-1][:200] or type(error).__name__
