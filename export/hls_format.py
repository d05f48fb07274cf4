"""The format `hls`: a design for an FPGA as C++, compiled with g++ and run bit by bit as the FPGA would compute."""

from __future__ import annotations

from pathlib import Path

from secateur.export.formats import Exporter, Options, Written, register
from secateur.export.hls_session import HlsModel
from secateur.export.source import Source


@register
class Hls(Exporter):
    """`model.hls.zip`, written by hls4ml for Vitis."""

    name = "hls"
    extra = "fpga"
    packages = ("hls4ml",)
    honours = frozenset({"board"})
    batches = 4
    computes = "fixed"

    def write(self, source: Source, folder: Path, options: Options) -> list[Written]:
        from secateur.export.hls import BOARD, to_hls

        path = folder / "model.hls.zip"
        design = to_hls(source.model, source.workload, path, board=options.board or BOARD)
        return [Written(path, (), design.model_dump(mode="json"))]

    def open(self, path: Path, threads: int = 1) -> HlsModel:
        return HlsModel(path)
