"""The format `onnx`: one file in float32 or float16, for any batch or a fixed one, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from secateur.export.formats import Exporter, Options, Written, register
from secateur.export.onnx_session import OnnxModel
from secateur.export.source import Source

OPSET = 20
"""The first opset with Gelu as one operator; ONNX Runtime reads it since 1.17."""


@register
class Onnx(Exporter):
    """`model.onnx`, run by ONNX Runtime."""

    name = "onnx"
    honours = frozenset({"precision", "static", "opset"})

    def write(self, source: Source, folder: Path, options: Options) -> list[Written]:
        tags: list[str] = [options.precision] if options.precision != "fp32" else []
        tags += ["static"] if options.static else []
        tags += [f"opset{options.opset}"] if options.opset else []
        from secateur.export.onnx import to_onnx

        path = folder / f"{'-'.join(['model', *tags])}.onnx"
        to_onnx(
            source.model,
            source.workload,
            path,
            dynamic_batch=not options.static,
            opset=options.opset or OPSET,
            half=options.precision == "fp16",
        )
        data = path.with_name(f"{path.name}.data")
        return [Written(path, (data,) if data.exists() else (), {"opset": options.opset or OPSET})]

    def open(self, path: Path, threads: int = 1) -> OnnxModel:
        return OnnxModel(path, threads)
