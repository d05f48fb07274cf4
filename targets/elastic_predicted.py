"""Latencies and energies of an elastic model on a target that is not here: what the target's model says of its parts.

The time to start a run counts to the shared part, and to each decoder what it adds to that; every configuration is then
a sum, as where it is measured. That is exact for models that add up operators, as those of all device files do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from secateur.core.elastic import LatencyTable, Table
from secateur.profiles.latency.parts import Parts
from secateur.targets.device import Device
from secateur.targets.hardware import Hardware, hardware_of
from secateur.targets.predict import energy_mj


def with_predictions(table: Table, parts: Parts, device: Device, kinds: Collection[str]) -> Table:
    """The table with predicted figures of a device: the kinds, of "latency" and "energy", and energy where its file
    tells it.

    Raises:
        DeviceError: nothing predicts one of the kinds; the hint says how to get that.
    """
    known = [*kinds, *(["energy"] if "energy" not in kinds and energy_mj(device, ()) is not None else [])]
    hardware = hardware_of(device, known)
    if "latency" in known:
        table = replace(table, latency={**table.latency, device.name: _latencies(table, parts, hardware)})
    if "energy" in known:
        each = [energy_mj(device, [operator]) or 0.0 for operator in parts.operators]
        table = replace(table, energy={**table.energy, device.name: parts.figures(each)})
    return table


def _latencies(table: Table, parts: Parts, hardware: Hardware) -> LatencyTable:
    assert hardware.table is not None
    model, (row, decoders) = hardware.table.model, table.full
    figures = parts.figures(model.parts(parts.operators), model.whole)
    error = model.predict(parts.of(row, decoders)).error_pct
    return LatencyTable(figures, "predicted", hardware.basis, error, figures.of(row, decoders))
