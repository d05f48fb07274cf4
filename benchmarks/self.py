"""What the tool itself costs: each command beside what it cannot do without, and its ten largest costs.

    python benchmarks/self.py                 # ten minutes on an idle machine; writes results/self.json
    python benchmarks/self.py --only help select --repeats 1

Every command runs in a process of its own: some times as a user types it, for its time, and once more while a second
thread looks every 2 ms at what the first one is doing. Each look counts for the innermost function of Secateur's that
runs, with the libraries that it calls, or for the outermost import that is being executed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import secateur
from secateur.core import machine
from secateur.core.files import write_json

RESULT = Path(__file__).parent / "results" / "self.json"
COMMANDS = {
    "help": ["--help"],
    "select": ["select", "scenes-elastic", "--budget", "flops<=40%"],
    "compress": ["compress", "digits", "--budget", "flops<=40%", "--drop", "3%", "-o", "bundle", "--force"],
    "benchmark": ["benchmark", "bundle"],
    "demo": ["demo", "--quick"],
}
EVERY_S = 0.002
LARGEST = 10


class Looks(threading.Thread):
    """Looks at the main thread's stack until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.costs: Counter[str] = Counter()
        self.inside: Counter[str] = Counter()
        """Looks at which a module of ours was somewhere on the stack."""
        self._main, self._end = threading.main_thread().ident, threading.Event()

    def run(self) -> None:
        while not self._end.wait(EVERY_S):
            frames = _frames(sys._current_frames().get(self._main or 0))
            self.costs[_doing(frames)] += 1
            self.inside.update({each.f_globals["__name__"] for each in frames if _ours(each)})

    def stop(self) -> dict[str, Any]:
        """Shares of all looks."""
        self._end.set()
        self.join()
        looks = self.costs.total()
        imports = sum(count for what, count in self.costs.items() if what.startswith("import "))
        return {
            "looks": looks,
            "imports": imports / looks,
            "timing_loops": self.inside["secateur.profiles.timing"] / looks,
            "costs": [{"what": what, "share": count / looks} for what, count in self.costs.most_common(LARGEST)],
        }


def _frames(frame: FrameType | None) -> list[FrameType]:
    """A stack, the innermost frame first."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def _doing(frames: list[FrameType]) -> str:
    for frame in reversed(frames):
        if frame.f_code.co_name == "_find_and_load" and not (name := frame.f_locals["name"]).startswith("secateur"):
            return f"import {name.split('.')[0]}"
    innermost = next((frame for frame in frames if _ours(frame)), None)
    if innermost is None or innermost.f_code.co_name == "<module>":
        return "import secateur"
    return f"{innermost.f_globals['__name__'].removeprefix('secateur.')}.{innermost.f_code.co_qualname}"


def _ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("secateur.")


def looked_at(arguments: list[str], result: Path) -> None:
    """Run a command in this process and write what it did."""
    looks = Looks()
    looks.start()
    from secateur.cli.app import app
    from secateur.cli.run import run

    code = run(app, arguments)
    write_json(result, looks.stop())
    sys.exit(code)


def epoch(result: Path) -> None:
    """Write the seconds of one epoch of fine-tuning `digits`, as compression does it."""
    from secateur.compress.finetune import Recipe, finetune
    from secateur.compress.journal import Journal

    workload, journal, seconds = secateur.workload("digits"), Journal(None, {}, resume=False), []
    for _ in range(4):
        started = time.monotonic()
        finetune(copy.deepcopy(workload.model), workload, Recipe(1), seed=0, label="epoch", journal=journal)
        seconds.append(time.monotonic() - started)
    write_json(result, {"seconds": statistics.median(seconds[1:])})


def seconds_of(command: list[str], folder: Path, times: int) -> list[float]:
    """Of a whole process, so many times."""
    found = []
    for _ in range(times):
        started = time.monotonic()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        found.append(time.monotonic() - started)
    return found


def figures(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Times and costs of one command."""
    arguments, this = COMMANDS[name], [sys.executable, str(Path(__file__).resolve())]
    seconds = seconds_of([sys.executable, "-m", "secateur", *arguments], folder, repeats)
    subprocess.run([*this, "--look", "looks.json", *arguments], cwd=folder, check=True, capture_output=True)
    looks = json.loads((folder / "looks.json").read_text(encoding="utf-8"))
    return {"command": " ".join(["secateur", *arguments]), "seconds": seconds, **looks}


def ratio(name: str, found: dict[str, Any], bare: float, epoch: float) -> tuple[float, str]:
    """A command's time beside what it cannot do without, and what that is."""
    seconds = statistics.median(found["seconds"])
    if name == "help":
        return seconds / bare, "`python -c pass`"
    if name == "select":
        return (1 - found["imports"]) * seconds / bare, "`python -c pass`, imports not counted"
    if name == "benchmark":
        return 1 / found["timing_loops"], "its own timing loops"
    return seconds / epoch, "an epoch of fine-tuning"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="these commands; nothing is written")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, this = Path(temporary), [sys.executable, str(Path(__file__).resolve())]
        bare = statistics.median(seconds_of([sys.executable, "-c", "pass"], folder, 5 * args.repeats))
        subprocess.run([*this, "--epoch", "epoch.json"], cwd=folder, check=True, capture_output=True)
        one = json.loads((folder / "epoch.json").read_text(encoding="utf-8"))["seconds"]
        commands = {}
        for name in args.only or COMMANDS:
            found = figures(name, folder, args.repeats)
            found["ratio"], found["to"] = ratio(name, found, bare, one)
            commands[name] = found
            print(f"{name}: {found['ratio']:.1f} times {found['to']}, {statistics.median(found['seconds']):.2f} s")
            for cost in found["costs"]:
                print(f"  {100 * cost['share']:5.1f} %  {cost['what']}", flush=True)
    if not args.only:
        write_json(RESULT, {
            "command": f"python benchmarks/self.py --repeats {args.repeats}", "machine": machine.describe(),
            "versions": machine.versions(), "bare_seconds": bare, "epoch_seconds": one, "commands": commands,
        })  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--look"]:
        looked_at(sys.argv[3:], Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--epoch"]:
        epoch(Path(sys.argv[2]))
    else:
        main()
