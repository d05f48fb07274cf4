"""Source: the model that is exported, with its workload, and its ONNX form, made once for every format that starts
from it.

    with Source(model, workload) as source:
        source.onnx(static=True)        # a path, valid until the block ends
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from secateur.core.scratch import Scratch

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.task import Workload


class Source:
    """A model to export. It is not changed."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        self.model, self.workload = model, workload
        self._folder = Scratch()
        self._files: dict[tuple[bool, int | None, bool], Path] = {}

    def onnx(self, *, static: bool = False, opset: int | None = None, half: bool = False) -> Path:
        """An ONNX file, to be read and not to be kept.

        Args:
            static: every size fixed, the batch being that of the example input.
            half: in float16 instead of float32.

        Raises:
            ExportError: the model cannot be expressed.
        """
        from secateur.export.onnx import to_onnx
        from secateur.export.onnx_format import OPSET

        key = (static, opset, half)
        if key not in self._files:
            path = Path(self._folder.name) / f"model-{len(self._files)}.onnx"
            self._files[key] = to_onnx(
                self.model, self.workload, path, dynamic_batch=not static, opset=opset or OPSET, half=half
            )
        return self._files[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
