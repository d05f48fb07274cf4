"""Every module of a format, imported: a new one is named here, and the command line knows it."""

from __future__ import annotations


def load_formats() -> None:
    """Make all formats known to `secateur.export.formats`; cheap, since their packages are imported where used."""
    import secateur.export.hls_format
    import secateur.export.ncnn_format
    import secateur.export.onnx_format
    import secateur.export.openvino_format
    import secateur.export.tensorrt_format
    import secateur.export.tvm_format  # noqa: F401
