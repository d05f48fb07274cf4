"""An ONNX file, opened with ONNX Runtime and called like the torch model it came from.

OnnxModel("model.onnx").predict(images)    # {task: tensor}
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.errors import ExportError

if TYPE_CHECKING:
    import torch

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""The node property in which torch's exporter notes the module path, as the text of a list."""


def open_session(path: str | os.PathLike[str], threads: int = 1, profile_prefix: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU: all graph optimisations, one operator at a time.

    Args:
        threads: inside of one operator. Threads stop spinning after each call, so that they take nothing from
            whatever is measured next.
        profile_prefix: where ONNX Runtime is to write its profile, when the session ends it.

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
            os.fspath(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        for value in [*session.get_inputs(), *session.get_outputs()]:
            _ = value.name, value.shape  # text that may be no UTF-8 in a damaged file
        return session
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ExportError(
            f"{path} is not an ONNX model that ONNX Runtime can run: {runtime_reason(error)}",
            "the file may be truncated: copy or export it again",
        ) from error


class OnnxModel:
    """A session that takes the inputs of the torch model and returns its predictions by task.

    Args:
        threads: of ONNX Runtime; all cores of this process when None.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self.path = Path(path)
        self._session = open_session(path, threads or available_cores())
        self.inputs: Sequence[str] = [value.name for value in self._session.get_inputs()]
        self.tasks: Sequence[str] = [value.name for value in self._session.get_outputs()]

    def predict(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Predictions of every task for one batch: `inputs` is a tensor, or a tuple of them in the model's order.

        Raises:
            ExportError: inputs that the model does not take.
        """
        import torch

        given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        if len(tensors) != len(self.inputs):
            raise ExportError(
                f"{self.path} takes {len(self.inputs)} inputs, {len(tensors)} were given",
                f"its inputs are: {', '.join(self.inputs)}",
            )
        feed = {name: value.detach().cpu().numpy() for name, value in zip(self.inputs, tensors, strict=True)}
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ExportError(
                f"{self.path} does not run on the given inputs: {runtime_reason(error)}", "compare shapes and types"
            ) from error
        return {task: torch.from_numpy(value) for task, value in zip(self.tasks, outputs, strict=True)}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runtime_reason(error: Exception) -> str:
    """ONNX Runtime's message without its prefixes, as one line."""
    text = " ".join(str(error).split()).rsplit("failed:", 1)[-1]
    text = re.sub(r"\S*onnxruntime_src/\S+ .*?\) ", "", text)  # file, line and function of its source
    return text.split(" : ", 3)[-1][:200] or type(error).__name__
