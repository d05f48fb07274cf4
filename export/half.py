"""Float16 in an ONNX file: weights and arithmetic, while inputs and outputs keep their types, so that the file can take
the place of the one in float32.

Conversion is ONNX Runtime's own (`onnxruntime.transformers.float16`): operators that have no float16 form get casts
around them, weights beyond float16's range are clipped, and whether the result is still the model is for the parity
check to say.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any


def halve(path: Path) -> Any:
    """The `onnx_ir` model of an ONNX file (weights beside it are read too), converted to float16."""
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inferred = path.with_name(f"{path.name}.inferred")
    onnx.shape_inference.infer_shapes_path(path, inferred)  # by path: it works above 2 GB too
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values out of float16's range are judged by the parity check
            model = convert_float_to_float16(onnx.load(inferred), keep_io_types=True, disable_shape_infer=True)
    finally:
        logging.disable(logging.NOTSET)
        inferred.unlink()
    del model.graph.value_info[:]  # the converter's notes of types are not all true, and can be inferred
    found = onnx_ir.from_proto(model)
    found.graph.sort()  # the converter appends its casts at the end
    return found
