"""Accelerators in which every layer has hardware of its own, fed by the one before: a workload's model predicted from
the design that hls4ml would be told to make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from secateur.core.costs import Profile, with_ratios
from secateur.core.errors import DeviceError
from secateur.export.hls_graph import prepare
from secateur.export.hls_resources import BOARDS, CLOCK_NS, fit, latency_cycles, layers_of
from secateur.targets.device import Device, StreamedLatency
from secateur.targets.predict import latency_of, order_of_magnitude

if TYPE_CHECKING:
    from secateur.verbs.measure import Subject


def measure_streamed(subjects: Mapping[str, Subject], device: Device, against: str | None) -> dict[str, Profile]:
    """Each subject's predicted profile; the ratio of two predictions is their speed-up.

    Raises:
        DeviceError: a subject without a workload.
        ExportError: a model that hls4ml does not take, or that does not fit on the board.
    """
    return with_ratios({name: _profile(name, subject, device) for name, subject in subjects.items()}, against)


def _profile(name: str, subject: Subject, device: Device) -> Profile:
    assert isinstance(device.latency, StreamedLatency)
    if subject.workload is None:
        raise DeviceError(
            f"{device.name} is predicted from a model's modules, which {name} does not hold",
            "name a bundle or a workload",
        )
    workload, board = subject.workload(), BOARDS[device.latency.board]
    prepared = prepare(workload.model, workload)
    design = fit(layers_of(prepared), device.latency.width, board)
    found = order_of_magnitude(latency_cycles(prepared, design) * CLOCK_NS / 1e6)
    return Profile(
        target=device.name,
        backend=f"design by hls4ml for {board.part}, {device.latency.width} bits, batch 1",
        source="predicted",
        basis="streamed",
        latency=latency_of(found),
        error_pct=found.error_pct,
        details={
            "board": board.name,
            "interval_ms": design.interval_ms,
            "resources": asdict(design.resources),
            "limits": asdict(board.limits),
            "reuse": design.reuse,
        },
    )
