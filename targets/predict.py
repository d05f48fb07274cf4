"""Predicting what a device takes for an ONNX file, from its description: never shown as a measured figure.

predict_onnx(get("mobile:raspberry-pi-5"), "model.onnx").latency
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

from secateur.core import machine
from secateur.core.costs import Latency, LayerProfile, Profile
from secateur.core.errors import DeviceError, MissingExtraError
from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.kernels import KernelModel
from secateur.profiles.latency.operators import Operator, total_macs
from secateur.profiles.latency.published import published
from secateur.profiles.latency.read import read_with_costs
from secateur.profiles.latency.soft_core import SoftCore
from secateur.profiles.latency.table import LatencyModel
from secateur.targets.calibration.run import calibrated
from secateur.targets.device import (
    Device,
    PublishedLatency,
    RooflineLatency,
    RoutedLatency,
    SoftCoreLatency,
    StreamedLatency,
)

FLOAT_BYTES = 4
UNCALIBRATED_WIDTH, UNCALIBRATED_PCT = 0.9, 45.0
"""Half the interval of what no measurement has calibrated, in logarithms: a factor of 2.5 either way; and its error."""
_P10_P90 = 1.2816 / 1.6449
"""Share of a normal 90 % interval that lies between its 10th and 90th percentile."""


def order_of_magnitude(ms: float) -> Estimate:
    """A latency that no measurement has calibrated."""
    return Estimate(ms, ms * exp(-UNCALIBRATED_WIDTH), ms * exp(UNCALIBRATED_WIDTH), UNCALIBRATED_PCT, {})


def latency_of(found: Estimate) -> Latency:
    """An estimate with its 10th and 90th percentile, as a normal distribution of its logarithm has them."""
    near = (found.ms / found.low) ** _P10_P90
    return Latency(found.ms, found.ms / near, found.ms * near)


@dataclass(frozen=True)
class Roofline:
    """Each operator takes as long as its arithmetic or its memory traffic, whichever is longer, at a share of the peak.

    Williams, Waterman and Patterson, CACM 2009. Peaks in FLOP/s and bytes per second.
    """

    compute: float
    bandwidth: float
    use: float
    operator_s: float

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        return order_of_magnitude(sum(self.layers(operators)))

    def parts(self, operators: Sequence[Operator]) -> list[float]:
        """What `whole` takes the sum of."""
        return self.layers(operators)

    def whole(self, sums: float) -> float:
        """Milliseconds of a model whose layers take so many together."""
        return sums

    def layers(self, operators: Sequence[Operator]) -> list[float]:
        return [1e3 * (self.operator_s + self._seconds(each)) for each in operators]

    def _seconds(self, operator: Operator) -> float:
        moved = FLOAT_BYTES * operator.elements_moved
        return max(2 * operator.macs / self.compute, moved / self.bandwidth) / self.use


_CALIBRATED = {"onnxruntime": "cpu", "ncnn": "mobile"}
"""Runtime of this machine → what `secateur calibrate` calls it."""


def model_of(device: Device) -> tuple[LatencyModel, str]:
    """What predicts a device, layer by layer, and what that is (a key of `registry.BASIS`): the model that was
    calibrated here, else the one that its file names.

    Raises:
        DeviceError: neither exists; the hint says how to get one.
    """
    if (own := calibration_of(device)) is not None:
        return own, "calibrated"
    if device.latency is None and (name := _name(device)) is not None:
        threads = _threads(device)
        command = f"secateur calibrate {name}" + (f" --threads {threads}" if threads != 1 else "")
        raise DeviceError(
            f"{device.name} has no latency model: this machine is not calibrated",
            f"run once, three to ten minutes: {command}",
        )
    return latency_model(device), device.latency.model if device.latency else ""


def calibration_of(device: Device) -> KernelModel | None:
    """What `secateur calibrate` learned of a device that is this machine, None where it did not."""
    name = _name(device)
    try:
        return calibrated(name, _threads(device)) if name is not None else None
    except MissingExtraError:  # whose version is part of what was calibrated
        return None


def _name(device: Device) -> str | None:
    here = device.here and device.kind != "gpu"
    return _CALIBRATED.get(device.runtime) if here or device.kind == "cpu" else None


def _threads(device: Device) -> int:
    return device.settings.threads or len(machine.cores())


def latency_model(device: Device) -> LatencyModel:
    """The model that a description names.

    Raises:
        DeviceError: it names none, or what that needs is missing.
    """
    match device.latency:
        case PublishedLatency() as model:
            return published(model.backend).device(model.device, model.threads, model.powersave)
        case SoftCoreLatency() as model:
            bandwidth = device.bandwidth.value if device.bandwidth else None
            return SoftCore(model.core, model.clock, model.board, bandwidth)
        case RooflineLatency() as model:
            if device.compute is None or device.bandwidth is None:
                raise DeviceError(f"{device.name}: a roofline needs compute and bandwidth", "add both to its file")
            return Roofline(device.compute.value, device.bandwidth.value, model.use, model.operator)
        case RoutedLatency():
            raise DeviceError(
                f"{device.name} is predicted from the routing of a whole workload, not layer by layer",
                "benchmark a bundle or a workload on it",
            )
        case StreamedLatency():
            raise DeviceError(
                f"{device.name} is predicted from a design for the whole model, not layer by layer",
                "benchmark a bundle or a workload on it",
            )
    raise DeviceError(f"{device.name} has no latency model", "add `latency` to its file, see docs/targets.md")


def predict_onnx(
    device: Device,
    path: str | os.PathLike[str],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    layers: bool = False,
) -> Profile:
    """A predicted profile: latency with its 10th and 90th percentile, energy where the device's file tells its costs.

    Raises:
        DeviceError: nothing predicts this device.
        ExportError: the file cannot be read, or leaves shapes open.
    """
    (operators, costs), (model, basis) = read_with_costs(path, shapes), model_of(device)
    found = model.predict(operators)
    return Profile(
        target=device.name,
        backend=f"{basis} model of {device.runtime}, batch 1",
        source="predicted",
        basis=basis,
        latency=latency_of(found),
        flops=costs.flops,
        params=costs.params,
        peak_memory_bytes=costs.peak_memory_bytes,
        energy_mj=energy_mj(device, operators),
        error_pct=round(found.error_pct, 1),
        layers=_layers(operators, model) if layers else (),
    )


def energy_mj(device: Device, operators: Sequence[Operator]) -> float | None:
    """Millijoules of arithmetic and memory traffic; what the device draws at rest is not in it.

    Every operand is counted as moved to and from main memory once, so caches make it an upper estimate of traffic.
    """
    if device.energy_per_mac is None or device.energy_per_byte is None:
        return None
    width = 1 if device.runtime == "vitis-ai" else FLOAT_BYTES
    moved = width * sum(operator.elements_moved for operator in operators)
    joules = total_macs(operators) * device.energy_per_mac.value + moved * device.energy_per_byte.value
    return 1e3 * joules


def _layers(operators: Sequence[Operator], model: LatencyModel) -> tuple[LayerProfile, ...]:
    return tuple(
        LayerProfile(each.name, each.kind, 2 * each.macs, FLOAT_BYTES * each.elements_moved, ms)
        for each, ms in zip(operators, model.layers(operators), strict=True)
    )
