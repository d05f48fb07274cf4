"""Fitting the soft core to published latencies, and leaving networks out to state its error.

    python -m secateur.profiles.latency.fit_soft_core       # writes data/soft_core.json

Of ten networks the layers are known; of the others the page gives MACs and the size of the input, and their
papers the number of weights. For those, compute is taken at the peak and activations as a fitted number of bytes per
input pixel. A network is left out on both boards at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.core.files import write_json
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.soft_core import CORES, cycles, moved_bytes
from secateur.profiles.latency.tables import SoftCoreRow, networks, soft_core_rows

Array = NDArray[np.float64]
BOARDS = ("ZCU102", "ZCU104")
_WEIGHTS = {
    "inception_v2": 11.2e6, "inception_v4": 42.7e6, "inception_resnet_v2": 55.8e6, "resnet_v1_152": 60.2e6,
    "yolov2_voc": 50.7e6,
}  # fmt: skip
_WEIGHTS_PER_MAC = 1.76e-3
"""For networks of unknown size, as of ResNets; pruning removes both alike."""
_NAMES = ("use", "depthwise_slowdown", "bandwidth", "bytes_per_pixel", "start_a", "start_b", "operator_ms")
_GUESS = np.array([0.85, 1.0, 8e9, 300.0, 0.6, 0.4, 0.005])
_LOW = np.array([0.3, 0.5, 1e9, 50.0, 0.01, 0.01, 1e-4])
_HIGH = np.array([1.0, 8.0, 19.2e9, 1500.0, 2.0, 2.0, 0.1])
"""No more than the peak, and no more than a 64-bit DDR4-2400 interface moves (both boards' data sheets)."""


def known_layers(name: str) -> tuple[Operator, ...] | None:
    """A network of the page, layer by layer, where ncnn's benchmark has the same one."""
    same = {
        "resnet50_caffe": "resnet50", "resnet_v1_50": "resnet50", "inception_v1": "googlenet", "vgg_16": "vgg16",
        "mobilenet_v2_caffe": "mobilenet_v2", "mobilenet_v2_1.0": "mobilenet_v2", "squeezenet": "squeezenet",
    }  # fmt: skip
    if name in same:
        return networks()[same[name]]
    if name == "mobilenet_v1_0.25":
        return scaled(networks()["mobilenet"], 0.25, 128 / 224)
    return scaled(networks()["mobilenet"], 0.5, 160 / 224) if name == "mobilenet_v1_0.5" else None


def scaled(operators: Sequence[Operator], width: float, size: float) -> tuple[Operator, ...]:
    """The same network with a share of its channels on a smaller image; images and classes keep theirs."""

    def channels(count: int) -> int:
        return count if count in (3, 1000) else max(1, int(count * width))

    def shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (channels(sizes[0]), *(max(1, ceil(each * size)) for each in sizes[1:]))

    def one(op: Operator) -> Operator:
        single = op.depthwise or op.channels[0] == 3 or op.channels[1] == 1000
        return replace(
            op, inputs=tuple(map(shape, op.inputs)), output=shape(op.output),
            groups=channels(op.groups) if op.groups > 1 else 1,
            weights=int(op.weights * (width if single else width * width)),
        )  # fmt: skip

    return tuple(map(one, operators))


def features(row: SoftCoreRow) -> list[float]:
    """[dense ms, depthwise ms, bytes, input pixels, operators, on the first board, on the second]."""
    board = [float(row.board == each) for each in BOARDS]
    operators = known_layers(row.network)
    if operators is None:
        weights = _WEIGHTS.get(row.network, row.macs * _WEIGHTS_PER_MAC)
        if row.network.startswith("yolov2"):
            weights = _WEIGHTS["yolov2_voc"] * row.macs / 17e9
        return [1e3 * row.macs / prod(CORES[row.core]) / row.clock_hz, 0.0, weights, row.pixels, 0.0, *board]
    spent = np.sum([cycles(operator, row.core) for operator in operators], axis=0) * 1e3 / row.clock_hz
    moved = float(sum(map(moved_bytes, operators)))
    steps = sum(operator.kind in ("conv", "pool", "elementwise") for operator in operators)
    return [float(spent[0]), float(spent[1]), moved, 0.0, float(steps), *board]


def latency(constants: Array, rows: Array) -> Array:
    """Milliseconds, (rows,)."""
    use, slow, bandwidth, per_pixel, first, second, each = constants
    memory = 1e3 * (rows[:, 2] + rows[:, 3] * per_pixel) / bandwidth
    return np.asarray(
        rows[:, 0] / use + rows[:, 1] * slow + memory + rows[:, 4] * each + rows[:, 5] * first + rows[:, 6] * second
    )


def fit(rows: Array, ms: Array) -> Array:
    """Constants within their physical limits; robust, and drawn slightly to round guesses."""
    from scipy.optimize import least_squares

    def residuals(logs: Array) -> Array:
        return np.concatenate([np.log(latency(np.exp(logs), rows) / ms), 0.05 * (logs - np.log(_GUESS))])

    limits = (np.log(_LOW), np.log(_HIGH))
    found = least_squares(residuals, np.log(_GUESS), bounds=limits, loss="soft_l1", f_scale=0.05)
    return np.asarray(np.exp(found.x))


def leave_one_out() -> tuple[list[SoftCoreRow], Array]:
    """(rows, predictions), each network predicted by constants that never saw it."""
    rows = soft_core_rows()
    table, ms, names = (
        np.array([*map(features, rows)]),
        np.array([row.ms for row in rows]),
        [row.network for row in rows],
    )
    predicted = np.zeros(len(rows))
    for name in set(names):
        out = np.array([each == name for each in names])
        predicted[out] = latency(fit(table[~out], ms[~out]), table[out])
    return rows, predicted


def main() -> None:
    """Write the constants that ship."""
    rows, predicted = leave_one_out()
    ms = np.array([row.ms for row in rows])
    error = np.abs(predicted / ms - 1)
    found = dict(zip(_NAMES, fit(np.array([*map(features, rows)]), ms).tolist(), strict=True))
    document = {
        "made_by": "python -m secateur.profiles.latency.fit_soft_core",
        "source": "Xilinx/Vitis-AI model zoo page, Vitis AI 1.1 (Apache-2.0)",
        "start_ms": {BOARDS[0]: found["start_a"], BOARDS[1]: found["start_b"]},
        "error_pct": round(100 * float(np.median(error)), 1),
        "width": round(float(np.quantile(np.abs(np.log(predicted / ms)), 0.9)), 3),
        **{name: found[name] for name in ("use", "depthwise_slowdown", "bandwidth", "bytes_per_pixel", "operator_ms")},
    }
    print(f"median error {document['error_pct']} %, {100 * np.mean(error < 0.1):.0f} % within 10 %", file=sys.stderr)
    write_json(Path(__file__).parent / "data" / "soft_core.json", document)


if __name__ == "__main__":
    main()
