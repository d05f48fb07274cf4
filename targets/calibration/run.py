"""calibrate: measure operators and whole networks on this machine, round by round, where the model still errs.

    calibrate("cpu", limit_s=600)       # goes on where an earlier run stopped
    calibrated("cpu").predict(read_onnx("model.onnx"))

Measurements are appended to one file in the user's cache folder for each runtime, version, threads and CPU model, as
they are made, so a run can be stopped at any moment.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from secateur.core import machine
from secateur.core.cache import cache_folder
from secateur.core.errors import DeviceError
from secateur.core.files import clear_errors, hold
from secateur.profiles.latency.kernels import KernelModel, Measured, cross_errors
from secateur.profiles.latency.operators import Operator, Shape
from secateur.profiles.latency.read import read_onnx_bytes
from secateur.targets.calibration.meters import METERS, Meter
from secateur.targets.calibration.networks import network
from secateur.targets.calibration.sampling import draw, worst

FIRST, ROUND, WHOLE = 500, 100, 80
"""Operators drawn before the first look at errors, in each later round, and whole networks measured."""
PASSES = 3
"""How often each network is measured, at different times: what else the machine does belongs to the error."""
GOOD_ENOUGH = 0.05
"""Median error of operators at which refinement ends."""
_FORM = 3
"""Of the file; one of another form is not read."""
_ELSEWHERE = "name another folder in the environment: SECATEUR_CACHE"
_SEED = 1009
"""Of operators and networks, each drawn by its number: a run that was stopped ends with those of one that was not."""


@dataclass(frozen=True)
class Calibration:
    """What was measured: operators, and by number whole networks with their milliseconds, one for each time."""

    path: Path
    version: str
    operators: list[Measured]
    models: dict[int, tuple[list[Operator], list[float]]]

    def model(self) -> KernelModel:
        """Learn from it."""
        fitted = KernelModel.fit(self.operators)
        return fitted.with_models(list(self.models.values())) if len(self.models) >= 5 else fitted

    def error_pct(self) -> float:
        """Median error of operators that took no part in learning."""
        return 100 * float(np.median(np.abs(np.expm1(cross_errors(self.operators)))))


def calibrate(
    target: str, limit_s: float = 600.0, threads: int = 1, progress: Callable[[str, int], None] = lambda *_: None
) -> Calibration:
    """Measure until the model is good or the time is over.

    Args:
        limit_s: seconds of this run.
        progress: called with what is done and how many measurements there are.

    Raises:
        DeviceError: operators of this target cannot be measured here, or another process does so already.
        MissingExtraError: its runtime is not installed.
        OutputError: the measurements cannot be written down.
    """
    meter, end = _meter(target, threads), time.monotonic() + limit_s
    with _appending(store(target, meter.version)) as file:
        found = read(target, threads)
        _pass(found, meter, file, WHOLE // 3, 1, end)
        passes = 0
        while time.monotonic() < end and (batch := _batch(found)):
            progress("operators", len(found.operators))
            for operator in batch:
                if time.monotonic() > end:
                    break
                row = Measured(operator, *meter.operator(operator))
                found.operators.append(row)
                _append(file, {"operator": asdict(operator), "ms": row.ms, "cold_ms": row.cold_ms})
            if len(found.operators) >= FIRST:
                passes = min(passes + 1, PASSES)
                _pass(found, meter, file, WHOLE, passes, end)
        for times in range(passes + 1, PASSES + 1):
            _pass(found, meter, file, WHOLE, times, end)
    progress("done", len(found.operators))
    calibrated.cache_clear()
    return found


@cache
def calibrated(target: str, threads: int = 1) -> KernelModel | None:
    """The model of this machine's calibration, None where it was not calibrated."""
    if target not in METERS:
        return None
    found = read(target, threads)
    return found.model() if len(found.operators) >= FIRST // 2 else None


def read(target: str, threads: int = 1) -> Calibration:
    """What was measured so far; a line that was cut off by a stopped run is left out."""
    version = _meter(target, threads).version
    path = store(target, version)
    operators, models = [], dict[int, tuple[list[Operator], list[float]]]()
    for entry in _entries(path):
        if "operator" in entry and isinstance(entry.get("cold_ms"), float):
            operators.append(Measured(_operator(entry["operator"]), entry["ms"], entry["cold_ms"]))
        elif "model" in entry and isinstance(entry.get("network"), int):
            models[entry["network"]] = ([_operator(each) for each in entry["model"]], [float(entry["ms"])])
        elif entry.get("network") in models:
            models[entry["network"]][1].append(float(entry["ms"]))
    return Calibration(path, version, operators, models)


def store(target: str, version: str) -> Path:
    """The file of measurements, one for each runtime, version, threads and CPU model."""
    folder = cache_folder() / "calibration"
    key = hashlib.sha256(f"{version}|{machine.describe()['cpu']}|{_FORM}".encode()).hexdigest()[:12]
    return folder / f"{target}-{key}.jsonl"


def _batch(found: Calibration) -> list[Operator]:
    """The next operators to measure; none when the model is good."""
    known = len(found.operators)
    if known < FIRST:
        return [draw(np.random.default_rng((_SEED, number))) for number in range(known, FIRST)]
    errors = cross_errors(found.operators)
    if float(np.median(np.abs(errors))) <= GOOD_ENOUGH:
        return []
    random = np.random.default_rng((_SEED, known))
    return worst([row.operator for row in found.operators], errors.tolist(), ROUND, random)


def _pass(found: Calibration, meter: Meter, file: IO[str], count: int, times: int, end: float) -> None:
    """Measure the networks below `count` that were measured less than `times` times, once."""
    for number in range(count):
        operators, known = found.models.get(number, ([], []))
        if len(known) >= times or time.monotonic() > end:
            continue
        sketch = network(np.random.default_rng((_SEED, number)))
        operators, ms = operators or read_onnx_bytes(sketch.onnx()), meter.model(sketch)
        first = {} if known else {"model": [asdict(each) for each in operators]}
        found.models[number] = (operators, [*known, ms])
        _append(file, {"network": number, **first, "ms": ms})


def _meter(target: str, threads: int) -> Meter:
    if target not in METERS:
        raise DeviceError(
            f'operators of "{target}" cannot be measured from here', f"calibrate one of: {', '.join(METERS)}"
        )
    return METERS[target](threads)


@contextmanager
def _appending(path: Path) -> Iterator[IO[str]]:
    """The file, ours alone, open at its end; a line that a stopped run left half is ended, so that the next one stands
    alone."""
    with clear_errors(path, _ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    with file:
        hold(
            file,
            DeviceError(
                f"another process calibrates into {path}", "wait until it ends: at the same time, both would be slower"
            ),
        )
        cut = path.read_bytes()[-1:] not in (b"", b"\n")
        file.write("\n" if cut else "")
        yield file


def _append(file: IO[str], entry: dict[str, Any]) -> None:
    with clear_errors(Path(file.name), _ELSEWHERE):
        file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        file.flush()


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("ms"), float) and entry["ms"] > 0:
            yield entry


def _operator(entry: dict[str, Any]) -> Operator:
    def shape(sizes: Sequence[int]) -> Shape:
        return tuple(int(size) for size in sizes)

    entry = {**entry, "inputs": tuple(map(shape, entry["inputs"])), "output": shape(entry["output"])}
    return Operator(**{**entry, "kernel": (entry["kernel"][0], entry["kernel"][1])})
