"""Terms: the physical pieces that an operator's time is made of, each in milliseconds on a nominal device.

A device is then one positive factor for each term (see `mixture`). What shapes do to time is in here: products of
small and unaligned channel counts, Winograd's algorithm for 3x3 kernels (Lavin and Gray, CVPR 2016, arXiv 1509.09308)
with its transforms, what flows through the caches and what no longer fits, dispatch of one operator, threads that find
no work where channels are few, and what runs on one thread however many there are. The nominal CPU is one ARM
Cortex-A72-like core (8 GMAC/s, 4 GB/s); the nominal GPU computes faster by several times and pays more for each
dispatch. Figures are round ones on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from secateur.profiles.latency.operators import CONVOLUTIONS, Operator

LANES = 4
"""Channels that ncnn packs into one vector, on most of the devices."""
CPU = ("dispatch", "product_1x1", "flow_1x1", "product", "product_large", "gather", "winograd", "transform", "flow",
       "weights", "linear", "stem", "grouped", "depthwise", "flow_depthwise", "pool", "lrn", "activation",
       "elementwise", "copy", "detection", "spill")  # fmt: skip
GPU = ("dispatch", "dispatch_conv", "product_1x1", "flow_1x1", "product", "winograd", "flow", "weights", "linear",
       "stem", "grouped", "depthwise", "flow_depthwise", "pool", "activation", "elementwise", "copy", "detection",
       "fallback", "spill")  # fmt: skip

_SERIAL = {"copy": 1.0, "detection": 1.0, "dispatch": 1.9}
"""How much slower than others, as an exponent of sqrt(threads), a term gets when its work is not shared by threads."""
_GPU_RATES = {"product_1x1": 0.35, "winograd": 0.5, "flow": 0.4, "copy": 2.0, "depthwise": 1.5}
_UNALIGNED = 1.75
"""How much longer products take whose output channels do not fill whole vectors: ncnn then packs none of them."""
_BLOCK = 8
"""Output channels of a convolution that one thread takes at a time; LANES of other operators."""
_IDLE = 0.3
"""Exponent of what threads lose that find no work: not all of it, since theirs is done by others meanwhile."""
_MILLION = 1e6
_SPILL_BYTES = 2 * 2**20


def cpu_terms(operators: Sequence[Operator], threads: int = 1) -> NDArray[np.float64]:
    """Shape (len(CPU),): the terms of a network, summed over its operators."""
    return _sum((_on_threads(operator, _cpu(operator), threads) for operator in operators), CPU)


def gpu_terms(operators: Sequence[Operator]) -> NDArray[np.float64]:
    """Shape (len(GPU),): the same for a GPU."""
    return _sum(map(_gpu, operators), GPU)


def prior(terms: Sequence[str], threads: bool) -> NDArray[np.float64]:
    """What is believed of log factors before any device is seen, shape (covariates, terms); see `covariates`."""
    mean = np.zeros((2 if threads else 1, len(terms)))
    if threads:
        mean[0, list(terms).index("dispatch")] = -1.0
        for name, slope in _SERIAL.items():
            mean[1, list(terms).index(name)] = slope
    return mean


def covariates(threads: Sequence[int] | None, count: int) -> NDArray[np.float64]:
    """What is known of settings: a constant and, on a CPU, log2(threads) / 2. Shape (count, 1 or 2)."""
    ones = np.ones(count)
    return ones[:, None] if threads is None else np.stack([ones, np.log2(threads) / 2], 1)


def _sum(parts: object, names: Sequence[str]) -> NDArray[np.float64]:
    total = dict.fromkeys(names, 0.0)
    for part in parts:  # type: ignore[attr-defined]
        for name, value in part.items():
            total[name] += value
    return np.array([total[name] for name in names])


def _on_threads(op: Operator, found: dict[str, float], threads: int) -> dict[str, float]:
    """Most work is shared by output channels, in chunks; the last chunks leave threads idle."""
    block = _BLOCK if op.kind == "conv" and not op.depthwise else LANES
    chunks = max(1, ceil(op.output[0] / block))
    idle = float((threads * ceil(chunks / threads) / chunks) ** _IDLE)
    return {name: value if name in _SERIAL or name == "lrn" else value * idle for name, value in found.items()}


def _up(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _cpu(op: Operator) -> dict[str, float]:
    found = {"dispatch": 0.005}
    flow = (op.elements_in + op.elements_out) / _MILLION
    if op.kind not in ("reshape", "detect", "linear", "activation"):
        found["spill"] = max(0.0, flow * _MILLION * 4 - _SPILL_BYTES) / (4 * _MILLION) * 2
    if op.kind in CONVOLUTIONS:
        return found | _convolution(op, flow)
    if op.kind == "linear":
        rows = op.macs / max(op.weights, 1)
        if rows >= 4:  # as many rows as a convolution has pixels
            return found | {"product_1x1": op.macs / _MILLION / 8, "flow_1x1": flow}
        return found | {"linear": 0.6 * op.weights * rows / _MILLION}
    if op.kind == "matmul":
        return found | {"product_1x1": op.macs / _MILLION / 8, "flow_1x1": flow}
    return found | _moving(op, flow)


def _convolution(op: Operator, flow: float) -> dict[str, float]:
    ins, outs = op.channels
    group_in, group_out = ins // op.groups, max(outs // op.groups, 1)
    slow = _UNALIGNED if outs % LANES else 1.0
    macs = slow * op.groups * op.pixels * _up(group_in) * _up(group_out) * op.taps / _MILLION
    if op.pixels == 1 and op.taps == 1:
        return {"linear": 0.6 * op.weights / _MILLION}
    weights = 0.4 * op.weights / _MILLION
    if op.depthwise:
        products = op.pixels * _up(outs) * op.taps / _MILLION / 4
        products *= 1.6 if op.taps >= 49 else 1.0  # no kernel of its own
        return {"weights": weights, "depthwise": products, "flow_depthwise": flow}
    found = {"weights": weights, "dispatch": 0.005 * (1 + (2 * op.groups if op.groups > 1 else 0))}
    if op.kind == "deconv" and op.groups == 1:  # a product over the input's pixels, then what overlaps is added up
        before = op.macs // (ins * outs)
        products = slow * before * _up(ins) * _up(outs) / _MILLION / 8
        return found | {"product_1x1": products, "gather": 2 * before * outs / _MILLION, "flow": 2 * flow}
    if ins <= 4 and op.taps <= 9:
        return found | {"stem": op.pixels * _up(outs) * ins * op.taps / _MILLION / 4, "flow": 2 * flow}
    if op.groups > 1 and op.taps > 1 and group_in < 32:
        return found | {"grouped": macs / 4, "flow": 2 * flow}
    if op.taps == 9 and op.kernel[0] == 3 and op.stride == op.dilation == 1 and min(group_in, group_out) >= 8:
        tiles = _winograd_products(op)
        products = slow * op.groups * tiles * _up(group_in) * _up(group_out) / _MILLION / 7
        return found | {"winograd": products, "transform": 3 * tiles * (ins + outs) / _MILLION, "flow": 2 * flow}
    if op.taps == 1:
        return found | {"product_1x1": macs / 8, "flow_1x1": flow}
    padded = op.pixels * (_up(group_in) if ins > 4 else ins) * _up(group_out) * op.groups * op.taps
    return found | {
        "product_large" if op.taps > 9 else "product": slow * padded / _MILLION / 6,
        "gather": 2 * op.pixels * ins * op.taps / _MILLION,
        "flow": 2 * flow,
    }


def _winograd_products(op: Operator) -> int:
    """Products for one pair of channels: 36 for a tile of 4x4 outputs or 64 for one of 6x6, whichever makes fewer."""
    height, width = op.output[1], op.output[2]
    return min(ceil(height / 4) * ceil(width / 4) * 36, ceil(height / 6) * ceil(width / 6) * 64)


def _moving(op: Operator, flow: float) -> dict[str, float]:
    """Operators that compute little: their time is what they read and write."""
    read = op.elements_in / _MILLION
    if op.kind == "pool":
        window = 3 if op.pixels > 1 else 1
        return {"pool": read + window * op.elements_out / _MILLION}
    if op.kind == "lrn":
        return {"lrn": read + 18 * op.elements_out / _MILLION}
    if op.kind == "norm":
        return {"pool": flow - op.elements_out / _MILLION}
    if op.kind == "layernorm":
        return {"activation": 2 * flow}
    if op.kind == "activation":
        return {
            "activation": read
            * {"swish": 4.0, "gelu": 5.0, "tanh": 3.0, "sigmoid": 3.0, "hswish": 1.5}.get(op.function, 1.0)
        }
    if op.kind == "softmax":
        return {"activation": 10 * read}
    if op.kind == "elementwise":
        return {"elementwise": 0.8 * flow}
    if op.kind == "reduce":
        return {"copy": 4 * read}
    if op.kind == "detect":
        return {"detection": 8 * read}
    return {} if op.kind == "reshape" else {"copy": flow}


def _gpu(op: Operator) -> dict[str, float]:
    """Dispatch dominates small operators, and what has no shader goes back to the CPU and returns."""
    found = _cpu(op)
    found["flow"] = sum(found.pop(name, 0.0) for name in ("flow", "gather", "transform"))
    if "product_large" in found:
        found["product"] = found.pop("product_large")
    found["dispatch"], found["spill"] = 0.12, found.get("spill", 0.0) / 2
    if op.kind in CONVOLUTIONS:
        found["dispatch_conv"] = 0.03
    if op.kind == "deconv":
        found["depthwise"] = found.pop("grouped", 0.0) / 10
    if op.kind == "activation":
        found["activation"] = op.elements_in / _MILLION
    if op.kind == "lrn":
        found["pool"] = 2 * op.elements_in / _MILLION
    if op.kind == "elementwise":
        found["elementwise"] = (op.elements_in + op.elements_out) / _MILLION
    found.pop("lrn", None)
    if op.kind in ("reduce", "detect"):
        found["fallback"] = 4.0 if op.kind == "reduce" else 3.0
    return {name: value * _GPU_RATES.get(name, 1.0) for name, value in found.items()}
