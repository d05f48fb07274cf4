"""Random graphs at length: whatever the topology, masked equals cut, the cost model equals a count of that,
and one in ten computes the same in ONNX Runtime.

    python benchmarks/random_graphs.py --count 10000           # goes on from what the result has

Each graph is drawn from its number, and checked by what tests/compress/test_random_graphs.py checks on a few.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torch.nn.functional as F
from torchmetrics import MeanSquaredError

from secateur.core.files import write_json
from secateur.core.machine import describe, versions
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "random_graphs.json"
EVERY = 50
"""Graphs that a worker takes at a time."""
EXPORTED = 10
"""One graph in so many is exported."""


def drawn(number: int, kinds: list[str]) -> dict[str, Any]:
    """The graph of a number: steps of (kind, two choices), heads, seed of the weights."""
    draw = random.Random(number)
    steps = [(draw.choice(kinds), draw.randrange(12), draw.randrange(12)) for _ in range(draw.randint(1, 9))]
    return {"steps": steps, "heads": draw.randint(1, 3), "seed": draw.randrange(100)}


def tried(numbers: range) -> Found:
    """The graphs of some numbers, one after the other."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "compress")]
    from random_models import KINDS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = Found(len(numbers))
    for number in numbers:
        case = drawn(number, sorted(KINDS))
        try:
            one(number, case, found)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            found.failed.append({"number": number, **case, "error": f"{type(error).__name__}: {error}", "at": where})
    return found


def one(number: int, case: dict[str, Any], found: Found) -> None:
    """Check one graph, and for one in ten that its cut model computes the same in ONNX Runtime."""
    from test_random_graphs import check
    from traces import outputs, random_keep

    groups = check(**case)
    found.groups += len(groups)
    found.prunable += len(groups.prunable)
    found.outputs += sum(group.why_not.startswith("output of the model") for group in groups.values())
    if number % EXPORTED:
        return
    small, images = groups.cut(random_keep(groups.prunable, number)).float(), torch.randn(3, 3, 8, 8)
    tasks = [Task(name, F.mse_loss, MeanSquaredError(), "lower") for name in small(images)]
    with tempfile.TemporaryDirectory() as folder:
        path = to_onnx(small, Workload("random", small, images, tasks, [], [], []), Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        got = session.run(None, {"input": images.numpy()})
    for wanted, value in zip(outputs(small, images), got, strict=True):
        scale = float(wanted.abs().max().clamp_min(1e-6))
        torch.testing.assert_close(torch.from_numpy(value) / scale, wanted / scale, rtol=0, atol=1e-3)
    found.exported += 1


@dataclass
class Found:
    """What some graphs gave. Groups are prunable, or outputs of the model, or refused by a rule or a trial cut."""

    graphs: int = 0
    groups: int = 0
    prunable: int = 0
    outputs: int = 0
    exported: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)

    def __add__(self, other: Found) -> Found:
        return Found(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="of graphs, with those that the result has")
    parser.add_argument("--minutes", type=float, default=60.0, help="start none after so many")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "compress")]
    from random_models import KINDS

    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {"seconds": 0.0}
    found = Found(**{name: before[name] for name in vars(Found()) if name in before})
    began = time.monotonic()
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        while found.graphs < args.count and time.monotonic() - began < 60 * args.minutes:
            starts = range(found.graphs, min(found.graphs + EVERY * args.workers, args.count), EVERY)
            for more in pool.map(tried, (range(start, min(start + EVERY, args.count)) for start in starts)):
                print(*more.failed, sep="\n", end="\n" if more.failed else "", flush=True)
                found += more
            seconds = round(before["seconds"] + time.monotonic() - began, 1)
            document = vars(found) | {"kinds": sorted(KINDS), "workers": args.workers, "seconds": seconds}
            document |= {"command": "python benchmarks/random_graphs.py", "machine": describe(), "versions": versions()}
            write_json(RESULT, document)


if __name__ == "__main__":
    main()
