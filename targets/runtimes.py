"""Runtimes other than ONNX Runtime that execute models on this machine: what each needs, and which format it runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class LocalRuntime:
    """A runtime by the name that device files use: the format that it executes, the packages that it needs, and the
    extra that brings them. `reads_onnx`: an ONNX file will do, without a conversion."""

    format: str
    packages: tuple[str, ...]
    extra: str
    reads_onnx: bool = False

    def missing(self) -> str | None:
        """A package that is not installed."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)


RUNTIMES = {
    "ncnn": LocalRuntime("ncnn", ("ncnn", "pnnx"), "mobile"),
    "openvino": LocalRuntime("openvino", ("openvino",), "openvino", reads_onnx=True),
}
