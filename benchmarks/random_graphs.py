"""Random graphs at length: whatever the topology, masked equals cut, and the cost model equals a count of that.

    python benchmarks/random_graphs.py --count 10000           # goes on from what the result has

Each graph is drawn from its number, and checked by what tests/compress/test_random_graphs.py checks on a few.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from secateur.core.files import write_json
from secateur.core.machine import describe, versions

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "random_graphs.json"
EVERY = 50
"""Graphs between two writes of the result."""


def drawn(number: int, kinds: list[str]) -> dict[str, Any]:
    """The graph of a number: steps of (kind, two choices), heads, seed of the weights."""
    draw = random.Random(number)
    steps = [(draw.choice(kinds), draw.randrange(12), draw.randrange(12)) for _ in range(draw.randint(1, 9))]
    return {"steps": steps, "heads": draw.randint(1, 3), "seed": draw.randrange(100)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="of graphs, with those that the result has")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "compress")]
    from random_models import KINDS
    from test_random_graphs import check

    warnings.simplefilter("ignore")
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"graphs": 0, "seconds": 0.0, "failed": []}
    began, before = time.monotonic(), found["seconds"]
    while found["graphs"] < args.count and time.monotonic() - began < 60 * args.minutes:
        case = drawn(found["graphs"], sorted(KINDS))
        try:
            check(**case)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            found["failed"].append(
                {"number": found["graphs"], **case, "error": f"{type(error).__name__}: {error}", "at": where}
            )
            print(found["failed"][-1], flush=True)
        found["graphs"] += 1
        if found["graphs"] % EVERY == 0 or found["graphs"] == args.count:
            found |= {"kinds": sorted(KINDS), "seconds": round(before + time.monotonic() - began, 1)}
            found |= {"command": "python benchmarks/random_graphs.py", "machine": describe(), "versions": versions()}
            write_json(RESULT, found)


if __name__ == "__main__":
    main()
