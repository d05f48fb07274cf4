"""Hardware: what budgets on latency and energy are judged by while a model is compressed, before anything is measured.

    hardware = hardware_of(get("cpu"), ("latency",))
    hardware.figure("latency", operators)       # milliseconds, in microseconds once the operators were met

The latency model is the machine's own where `secateur calibrate` measured it, else the one that the target's file
names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from secateur.core.errors import DeviceError
from secateur.export.onnx_session import available_cores
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.table import LatencyModel, LatencyTable
from secateur.targets.calibration.run import calibrated
from secateur.targets.device import Device, RoutedLatency
from secateur.targets.predict import CALIBRATED, energy_mj, latency_model
from secateur.targets.registry import BASIS


@dataclass(frozen=True)
class Hardware:
    """Predicted figures of any operators on one target.

    Attributes:
        kinds: of "latency" and "energy", those that are asked for.
        basis: what they come from, in words.
        table: of latencies; None where only energy is asked for.
    """

    device: Device
    kinds: tuple[str, ...]
    basis: str
    table: LatencyTable | None

    @property
    def target(self) -> str:
        return self.device.name

    def figure(self, kind: str, operators: Sequence[Operator]) -> float:
        """Milliseconds or millijoules for one sample."""
        if kind == "energy":
            return energy_mj(self.device, operators) or 0.0
        assert self.table is not None
        return self.table.ms(operators)

    def learn(self, models: Iterable[Sequence[Operator]]) -> None:
        """Prepare for several models at once; see `LatencyTable.learn`."""
        if self.table is not None:
            self.table.learn(models)


def hardware_of(device: Device, kinds: Collection[str]) -> Hardware:
    """What predicts the kinds of figures, of "latency" and "energy", on a device.

    Raises:
        DeviceError: nothing predicts them; the hint says how to get that.
    """
    if "energy" in kinds and energy_mj(device, ()) is None:
        raise DeviceError(
            f"{device.name} tells no energy",
            "add energy_per_mac and energy_per_byte to its file, or choose a target that has them, such as "
            "mobile:raspberry-pi-5",
        )
    if "latency" not in kinds:
        return Hardware(device, tuple(kinds), "energy of a MAC and of a byte in the target's file", None)
    if device.settings.batch != 1:
        raise DeviceError(
            f"{device.name} runs batches of {device.settings.batch}, and latencies are predicted for single samples",
            "limit the latency of a target with `batch: 1`",
        )
    model, basis = _latency_model(device)
    return Hardware(device, tuple(kinds), basis, LatencyTable(model))


def _latency_model(device: Device) -> tuple[LatencyModel, str]:
    name = CALIBRATED.get(device.runtime) if device.here or device.kind == "cpu" else None
    threads = device.settings.threads or available_cores()
    if name is not None and (found := calibrated(name, threads)) is not None:
        return found, f"operators of this machine, measured by secateur calibrate {name}"
    if isinstance(device.latency, RoutedLatency):
        raise DeviceError(
            f"{device.name} is predicted from the routing of a whole workload, not layer by layer",
            "limit flops, or the latency of another target",
        )
    if device.latency is not None:
        return latency_model(device), f"a model {BASIS[device.latency.model]}"
    if name is None:
        raise DeviceError(
            f"{device.name} has no latency model", "add `latency` to its file (docs/targets.md), or limit flops"
        )
    command = f"secateur calibrate {name}" + (f" --threads {threads}" if threads != 1 else "")
    raise DeviceError(
        f"{device.name} has no latency model: this machine is not calibrated",
        f"run once, three to ten minutes: {command}; or limit flops",
    )
