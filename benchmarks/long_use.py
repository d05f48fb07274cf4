"""One process used for long: does its memory grow?

    python benchmarks/long_use.py --selections 500 --benchmarks 100

Selections of widths on four targets, then benchmarks on this machine's CPU. Resident memory is read from the kernel
after every tenth; growth is that of the second half, when caches are warm.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import secateur as sc
from secateur.core.files import write_json
from secateur.core.machine import describe, versions
from secateur.export.onnx import to_onnx

RESULT = Path(__file__).parent / "results" / "long_use.json"
TARGETS = ("cpu", "mobile:raspberry-pi-5", "fpga:zcu102", "gpu:jetson-nano")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def grown(times: int, use: Callable[[int], object]) -> dict[str, Any]:
    """Use it so many times: MiB after every tenth of them, and what the second half added."""
    began, seen = time.monotonic(), []
    for number in range(times):
        use(number)
        if (number + 1) % max(times // 10, 1) == 0:
            gc.collect()
            seen.append(round(resident_mib(), 1))
    half = seen[len(seen) // 2 :]
    return {"times": times, "mib": seen, "second_half_mib": round(half[-1] - half[0], 1),
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selections", type=int, default=500)
    parser.add_argument("--benchmarks", type=int, default=100)
    args = parser.parse_args()

    def select(number: int) -> None:
        sc.select("scenes-elastic", f"flops<={5 + number % 95}%", target=TARGETS[number % len(TARGETS)])

    with tempfile.TemporaryDirectory() as temporary:
        workload = sc.workload("digits")
        path = to_onnx(workload.model, workload, Path(temporary) / "model.onnx")
        document = {
            "selections": grown(args.selections, select),
            "benchmarks": grown(args.benchmarks, lambda _: sc.benchmark(path, ["cpu"])),
        }
    command = f"python benchmarks/long_use.py --selections {args.selections} --benchmarks {args.benchmarks}"
    write_json(RESULT, {"command": command, "machine": describe(), "versions": versions(), **document})
    print(document)


if __name__ == "__main__":
    main()
