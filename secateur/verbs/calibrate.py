"""calibrate: measure operators on this machine until a model of it predicts others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from secateur.core import machine
from secateur.core.errors import DeviceError
from secateur.core.progress import bars
from secateur.targets.calibration.run import FIRST
from secateur.targets.calibration.run import calibrate as measure_operators


@dataclass(frozen=True)
class CalibrationReport:
    """What was measured. `error_pct` is the median error on operators that took no part in learning."""

    target: str
    runtime: str
    path: str
    operators: int
    networks: int
    error_pct: float | None

    def as_json(self) -> dict[str, Any]:
        """The document of `calibrate --json`."""
        return {**vars(self), "machine": machine.describe()}


def calibrate(target: str, minutes: float = 10.0, threads: int = 1) -> CalibrationReport:
    """Measure operators of a target, `cpu` (ONNX Runtime) or `mobile` (ncnn), on this machine.

    Goes on where an earlier run stopped; what was measured is kept in the user's cache folder, apart for each runtime,
    version, number of threads and CPU model.

    Raises:
        DeviceError: operators of this target cannot be measured from here, or a time that is none.
        MissingExtraError: its runtime is not installed.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise DeviceError(f"{minutes:g} minutes is no time to measure", "give a number above 0")
    with bars() as display:
        task = display.add_task(f"calibrating {target}", total=FIRST)

        def progress(_step: str, done: int) -> None:
            display.update(task, completed=done, total=max(FIRST, done))

        found = measure_operators(target, 60 * minutes, threads, progress)
    error = found.error_pct() if len(found.operators) >= FIRST // 2 else None
    return CalibrationReport(
        target, found.version, str(found.path), len(found.operators), len(found.models), error and round(error, 1)
    )
