"""Published measurements that ship with Secateur, and the networks that they were made with, operator by operator.

`data/ncnn.json.gz` holds Tencent/ncnn's benchmark table (BSD-3-Clause; benchmark/README.md, July 2026, minima of the
runs) and the shapes of 24 of its networks (benchmark/models/*.param); `data/dpu_latency.csv` AMD/Xilinx' model zoo
page for Vitis AI 1.1 (Apache-2.0).
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.profiles.latency.operators import Operator


@dataclass(frozen=True)
class Setting:
    """How a column of the table was measured; `repeat` tells tables apart that name the same device."""

    device: str
    backend: str
    threads: int
    powersave: int
    repeat: int


@cache
def _document() -> dict[str, Any]:
    packed = resources.files("secateur.profiles.latency") / "data" / "ncnn.json.gz"
    return json.loads(gzip.decompress(packed.read_bytes()))  # type: ignore[no-any-return]


@cache
def networks() -> dict[str, tuple[Operator, ...]]:
    """The networks of ncnn's benchmark, by name."""
    return {name: tuple(map(operator, entries)) for name, entries in _document()["networks"].items()}


def latencies(backend: str) -> tuple[list[Setting], list[str], NDArray[np.float64]]:
    """(settings, networks, milliseconds of shape (networks, settings), NaN where none was published)."""
    names = sorted(networks())
    columns = [entry for entry in _document()["settings"] if entry["backend"] == backend]
    table = [[entry["ms"].get(name, np.nan) for entry in columns] for name in names]
    keys = ("device", "backend", "threads", "powersave", "repeat")
    return [Setting(*(entry[key] for key in keys)) for entry in columns], names, np.array(table, np.float64)


def operator(entry: dict[str, Any]) -> Operator:
    """An operator from its entry in the data."""
    shapes = entry["in"]
    inputs = tuple(map(tuple, shapes)) if isinstance(shapes[0], list) else (tuple(shapes),)
    kernel = entry.get("kernel", (1, 1))
    return Operator(
        entry["op"], inputs, tuple(entry["out"]), (kernel[0], kernel[-1]), entry.get("stride", 1),
        entry.get("dilation", 1), entry.get("groups", 1), entry.get("weights", 0), entry.get("function", ""),
    )  # fmt: skip


@dataclass(frozen=True)
class SoftCoreRow:
    """One network on one board; `macs` are half the published operations."""

    board: str
    core: str
    clock_hz: float
    network: str
    pixels: int
    macs: float
    ms: float


def soft_core_rows() -> list[SoftCoreRow]:
    text = (resources.files("secateur.profiles.latency") / "data" / "dpu_latency.csv").read_text(encoding="utf-8")
    return [
        SoftCoreRow(
            row["board"], row["dpu"], float(row["clock_mhz"]) * 1e6, row["network"],
            int(np.prod([int(size) for size in row["input"].split("x")])), float(row["gops"]) * 5e8,
            float(row["latency_ms"]),
        )
        for row in csv.DictReader(text.splitlines())
    ]  # fmt: skip
