"""One run on one device over TVM's RPC: send the libraries, call them in turns, and fetch what they compute.

run_over_rpc(device, {"before": Path("a.tvm.so"), "after": Path("b.tvm.so")}, inputs)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from secateur.export.tvm_format import Signature
from secateur.export.tvm_rpc import TvmDevice
from secateur.targets.farm.device_run import DeviceRun, Inputs, Said
from secateur.targets.farm.file import FarmDevice

ROUNDS, CALLS = 4, 5
"""Rounds at the least, and calls of each library in one."""


def run_over_rpc(
    device: FarmDevice,
    libraries: Mapping[str, Path],
    inputs: Mapping[str, Inputs],
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> DeviceRun:
    """Run libraries of TVM in turns on a device.

    Args:
        libraries: name → library, with its signature beside it.
        inputs: of each.
        seed: of the order within each round.

    Raises:
        TargetUnavailableError, DeviceLostError: the device does not answer, or went in the middle.
        ExportError: a library is damaged.
    """
    there = TvmDevice(
        str(device.reach.rpc), device.reach.tracker_key, threads=device.threads, timeout_s=round(device.timeout_s)
    )
    loaded = {name: there.load(path) for name, path in libraries.items()}
    outputs = {name: remote.run(inputs[name].values) for name, remote in loaded.items()}
    order, draw = list(loaded), random.Random(seed)  # noqa: S311 - an order, not a secret
    samples: dict[str, list[float]] = {name: [] for name in loaded}
    start, rounds = clock(), 0
    while rounds < ROUNDS or clock() - start < device.warmup_s + device.limit_s:
        draw.shuffle(order)
        warming = clock() - start < device.warmup_s and rounds < ROUNDS
        for name in order:
            times = loaded[name].milliseconds(inputs[name].values, CALLS)
            samples[name] += [] if warming else times
        rounds += not warming
    version = Signature.read(next(iter(libraries.values()))).version
    return DeviceRun(samples, outputs, Said(version, device.threads, complete=True))
