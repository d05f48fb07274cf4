"""The format `ncnn`: graph, weights and shapes of one network, in float32 or float16, run by ncnn."""

from __future__ import annotations

from pathlib import Path

from secateur.export.formats import Exporter, Options, Written, register
from secateur.export.ncnn_session import NcnnModel, Signature, signature_of, weights_of
from secateur.export.source import Source


@register
class Ncnn(Exporter):
    """`model.ncnn.param`, `.bin` and `.json`, converted by pnnx and run by ncnn."""

    name = "ncnn"
    extra = "mobile"
    packages = ("ncnn", "pnnx")
    honours = frozenset({"precision"})

    def write(self, source: Source, folder: Path, options: Options) -> list[Written]:
        from secateur.export.ncnn import to_ncnn

        half = options.precision == "fp16"
        path = folder / f"model{'-fp16' if half else ''}.ncnn.param"
        to_ncnn(source.model, source.workload, path, half=half)
        return [Written(path, (weights_of(path), signature_of(path)), {"storage": options.precision})]

    def open(self, path: Path, threads: int = 1) -> NcnnModel:
        return NcnnModel(path, threads, half=Signature.read(path).storage == "fp16")
