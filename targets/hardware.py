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
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.table import LatencyTable
from secateur.targets.device import Device
from secateur.targets.predict import energy_mj, model_of
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
    try:
        model, basis = model_of(device)
    except DeviceError as error:
        raise DeviceError(error.message, f"{error.hint}; or limit flops") from error
    return Hardware(device, tuple(kinds), f"a model {BASIS[basis]}", LatencyTable(model))
