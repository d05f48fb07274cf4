"""What a figure was measured with: machine, threads and library versions, written beside every figure."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
from pathlib import Path

LIBRARIES = ("secateur", "torch", "numpy", "onnx", "onnxruntime", "onnxscript", "safetensors")


def describe() -> dict[str, str | int]:
    """This machine: CPU model, cores available to this process, memory, operating system, Python."""
    return {
        "cpu": _cpu_model(),
        "cores": len(cores()),
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def user() -> str:
    """Who runs this process, by name, or by number where that has none (a container's, say)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else "somebody"


def cores() -> list[int]:
    """Numbers of the cores that this process may use: one of each physical core first, then those that share one."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    first, shared, seen = list[int](), list[int](), set[str]()
    for number in sorted(os.sched_getaffinity(0)):
        siblings = _siblings(number)
        (shared if siblings in seen else first).append(number)
        seen.add(siblings)
    return first + shared


def _siblings(number: int) -> str:
    """The cores that are threads of the same physical one, as Linux lists them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:  # not told: a core of its own
        return str(number)


def versions() -> dict[str, str]:
    """Versions of the libraries that can change a result."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError):
        return 0
