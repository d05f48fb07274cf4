"""Predicted peak memory against what ONNX Runtime really allocates, network by network: writes results/memory.json.

    python benchmarks/memory.py          # one to four minutes; Linux with glibc

Each network runs in a process of its own, without ONNX Runtime's arena (which keeps what it once had), with every
allocation of four pages or more returned to the system when it is freed. The kernel's own count of the process's
largest resident memory (VmHWM) is reset before the run; what it grew by is what the run needed, with the inputs, which
exist before. What a process holds after loading, less what it holds for a network of one operator, is put beside the
weights: `held = fixed + times * weights`, by least squares.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from latency import variants

from secateur.core import machine
from secateur.core.files import write_json
from secateur.export.onnx import to_onnx
from secateur.profiles.latency.read import onnx_costs
from secateur.targets.calibration.sketch import Sketch
from secateur.workloads import workload

HERE = Path(__file__).parent
VARIANTS = 45
WORKLOADS = ("scenes", "digits", "multifashion")
RUNS = 3
GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0", "MALLOC_ARENA_MAX": "1",
}  # fmt: skip


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since it was reset."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def measure(path: str) -> dict[str, int]:
    """What this process needs to load a network and to run it, in bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    trim, before = ctypes.CDLL("libc.so.6").malloc_trim, resident("VmRSS")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {each.name: [size if isinstance(size, int) else 1 for size in each.shape] for each in session.get_inputs()}
    inputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    trim(0)
    loaded, grown = resident("VmRSS") - before, []
    for _ in range(1 + RUNS):  # the first also makes what the runtime keeps
        gc.collect()
        trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        start = resident("VmRSS")
        session.run(None, inputs)
        grown.append(resident("VmHWM") - start)
    given = sum(value.nbytes for value in inputs.values())
    return {"loaded": loaded, "activations": sorted(grown[1:])[RUNS // 2] + given}


def apart(path: Path) -> dict[str, int]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, env=os.environ | GLIBC, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def networks(folder: Path) -> list[tuple[str, Path]]:
    """(name, ONNX file) of each."""
    found = []
    for index, (family, sketch) in enumerate(variants()[:VARIANTS]):
        path = folder / f"{index}.onnx"
        path.write_bytes(sketch.onnx())
        found.append((family, path))
    for name in WORKLOADS:
        loaded = workload(name)
        found.append((name, to_onnx(loaded.model, loaded, folder / f"{name}.onnx")))
    return found


def smallest(folder: Path) -> Path:
    """A network of one operator."""
    sketch, path = Sketch((1, 1, 1)), folder / "smallest.onnx"
    path.write_bytes(sketch.finish(sketch.activation(sketch.input, "relu")).onnx())
    return path


def row(name: str, path: Path, library: int) -> dict[str, object]:
    import onnx

    weights = sum(4 * int(np.prod(each.dims)) for each in onnx.load(path, load_external_data=False).graph.initializer)
    found, whole = apart(path), onnx_costs(path).peak_memory_bytes
    held = found["loaded"] - library
    return {
        "network": name, "weights": weights, "held_after_loading": held,
        "predicted_activations": whole - weights, "measured_activations": found["activations"],
        "predicted": whole, "measured": held + found["activations"],
    }  # fmt: skip


def errors(rows: list[dict[str, object]], key: str, against: str) -> dict[str, float]:
    """Of predictions in percent of what was measured: the median, that of the sizes, and the extremes."""
    off = np.array([100 * (float(each[key]) / float(each[against]) - 1) for each in rows])  # type: ignore[arg-type]
    figures = {"bias": np.median(off), "median": np.median(np.abs(off)), "least": off.min(), "most": off.max()}
    return {f"{name}_error_pct": round(float(value), 1) for name, value in figures.items()}


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    weights, held = (np.array([float(each[key]) for each in rows]) for key in ("weights", "held_after_loading"))  # type: ignore[arg-type]
    times, fixed = np.polyfit(weights, held, 1)
    rest = held - fixed - times * weights
    return {
        "activations": errors(rows, "predicted_activations", "measured_activations"),
        "whole": errors(rows, "predicted", "measured"),
        "held": {
            "fixed_bytes": round(float(fixed)), "times_weights": round(float(times), 3),
            "median_rest_bytes": round(float(np.median(np.abs(rest)))),
        },
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        library = apart(smallest(folder))["loaded"]
        rows = [row(name, path, library) for name, path in networks(folder)]
    document = {
        "command": "python benchmarks/memory.py", "machine": machine.describe(), "versions": machine.versions(),
        "library_bytes": library, **summary(rows), "results": rows,
    }  # fmt: skip
    write_json(HERE / "results" / "memory.json", document)
    print(json.dumps({key: value for key, value in document.items() if key != "results"}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
