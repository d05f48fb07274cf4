"""A bank of `scenes-moe` with one set for each task: bytes that are read to load a task and to switch to the next, and
memory of the tasks that are resident, against one model for each task.

    python benchmarks/bank.py

Bytes are counted in the reads of the file of weights; memory is that of the storages of all tensors that are loaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from secateur.core import machine
from secateur.core.files import write_json
from secateur.workloads import workload
from secateur.workloads.scenes_moe import network

OUT = Path(__file__).parent / "results" / "bank.json"


def main() -> None:
    whole = workload("scenes-moe")
    with tempfile.TemporaryDirectory() as folder:
        bundle = sc.extract(whole, [[task] for task in whole.task_names]).save(Path(folder) / "bank")
        bank = sc.load(bundle).bank(network)
        header, rows, separate = bank.bytes_read, list[dict[str, Any]](), 0
        for task in whole.task_names:
            before = bank.bytes_read
            model = bank.model(task)
            separate += bank.needed_bytes(task)
            rows.append({
                "task": task, "read_bytes": bank.bytes_read - before, "needed_bytes": bank.needed_bytes(task),
                "resident_bytes": bank.resident_bytes, "separate_bytes": separate,
                "identical_on_calibration": _identical(model, whole, task),
            })  # fmt: skip
            print(rows[-1])
        document = {
            "command": "python benchmarks/bank.py", "source": "measured", "machine": machine.describe(),
            "versions": machine.versions(), "header_bytes": header, "rows": rows, **bank.describe(),
            "lists_bytes": bundle.file("points/00/bank.json").stat().st_size,
        }  # fmt: skip
    write_json(OUT, document)


def _identical(model: torch.nn.Module, whole: sc.Workload, task: str) -> bool:
    with torch.no_grad():
        return all(torch.equal(model(x, task), whole.model(x, task)) for x, _ in whole.calibration)


if __name__ == "__main__":
    main()
