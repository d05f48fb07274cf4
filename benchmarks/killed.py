"""kill -9 at random moments of each method, and --resume: does the same come of it?

    python benchmarks/killed.py --kills 20                     # all methods
    python benchmarks/killed.py --kills 20 --only farm         # one; the figures of the others stay

Small workloads, so that a run takes seconds; each kill ends a process of its own at a moment drawn from the whole
processor time of a run, so that other work on the machine does not shift it. Between kills the run is resumed, so that
later ones hit what an earlier one left. At the end there must be what a run leaves that nobody stopped: of a model the
same weights and channel maps, and a bundle whose files have their hashes; of a calibration the same operators and
networks, each measured as often; of a farm an outcome for each job, the one that was noted first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import secateur as sc
from secateur.compress import experts, pagcp, slimmable
from secateur.compress.compressed import Compressed
from secateur.core.bundle import Bundle
from secateur.core.files import sha256, write_json
from secateur.core.machine import describe, versions
from secateur.targets.calibration import run as calibration
from secateur.targets.farm.journal import Journal
from secateur.verbs.farm import farm as measure_on_farm

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "killed.json"
Method = Callable[[Path, bool], Compressed]
Run = Callable[[Path, bool], None]


def prune(state: Path, resume: bool) -> Compressed:
    from toys import pair

    settings = pagcp.settings.Settings(rounds=2, epochs=4)
    return sc.prune(pair(), "flops<=60%", "90%", settings=settings, state=state, resume=resume)


def slim(state: Path, resume: bool) -> Compressed:
    from toys import pair

    settings = slimmable.Settings(widths=(0.5, 1.0), epochs=4)
    return sc.slim(pair(), settings=settings, state=state, resume=resume)


def extract(state: Path, resume: bool) -> Compressed:
    from moe_models import workload

    settings = experts.Settings(rounds=2, epochs=2)
    return sc.extract(workload(), "depth", "params<=59%", "90%", settings=settings, state=state, resume=resume)


def saved(method: Method) -> Run:
    """A method as a run that ends in a bundle."""

    def run(folder: Path, resume: bool) -> None:
        method(folder / "state", resume).save(folder / "bundle", force=True)

    return run


def to_bundle(folder: Path, resume: bool) -> None:
    """The whole command: pruning, export, measuring and report."""
    settings = pagcp.settings.Settings(rounds=1, epochs=2)
    sc.compress_to_bundle("toys:pair", folder / "bundle", "flops<=60%", "90%", settings=settings, resume=resume)


def weights(folder: Path) -> dict[str, Any]:
    """Hash of every tensor file and of the channel maps, and what is wrong with the bundle."""
    paths = sorted((folder / "bundle" / "points").rglob("*.*"))
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    return {**hashes, "wrong": Bundle.open(folder / "bundle").verify()}


def calibrate(folder: Path, resume: bool) -> None:
    """Forty operators, and six networks three times each."""
    os.environ["SECATEUR_CACHE"] = str(folder)
    calibration.FIRST, calibration.WHOLE, calibration.GOOD_ENOUGH = 40, 6, math.inf  # what follows depends on times
    calibration.calibrate("cpu")


def measured(folder: Path) -> dict[str, Any]:
    """The operators in their order, and how often each network was measured."""
    os.environ["SECATEUR_CACHE"] = str(folder)
    found = calibration.read("cpu")
    return {
        "operators": [row.operator for row in found.operators],
        "networks": {number: len(times) for number, (_, times) in found.models.items()},
    }


def farm(folder: Path, resume: bool) -> None:
    """Three models on three loopback devices of two keys; what the journal holds is neither run again nor changed."""
    from toys import pair

    folder.mkdir(exist_ok=True)
    log, runner, devices = folder / "log", folder / "runner", folder / "devices.yaml"
    fake = ROOT / "tests" / "targets" / "farm" / "fake_runner.py"
    runner.write_text(f'#!/bin/sh\necho >> {log}\nexec {sys.executable} {fake} "$@"\n')
    entries = [
        {"name": name, "key": key, "reach": {"local": True}, "runner": "runner", "folder": str(folder / name)}
        for name, key in (("a", "board"), ("b", "board"), ("c", "phone"))
    ]
    devices.write_text(json.dumps({"leases": "leases", "devices": entries}))  # which is YAML, too
    journal = folder / "farm.json.journal"
    noted = Journal(journal).outcomes() if journal.exists() else {}
    log.write_text("")
    models = [replace(pair(), name=f"model {number}") for number in range(3)]
    found = measure_on_farm(models, devices, folder / "farm.json", resume=resume)
    assert {name: found.outcomes[name] for name in noted} == noted
    assert len(log.read_text()) == len(found.outcomes) - len(noted)


def told(folder: Path) -> list[Any]:
    """Each model, key and source of the report, and what else stands beside it."""
    document = json.loads((folder / "farm.json").read_text())
    rows = [(each["name"], row["target"], row["source"]) for each in document["benchmarks"] for row in each["results"]]
    return [rows, sorted(path.name for path in folder.iterdir()), sorted(path.name for path in folder.glob("?/run-*"))]


METHODS: dict[str, tuple[Run, Callable[[Path], Any]]] = {
    "pagcp": (saved(prune), weights), "slimmable": (saved(slim), weights), "experts": (saved(extract), weights),
    "compress to a bundle": (to_bundle, weights), "calibration": (calibrate, measured), "farm": (farm, told),
}  # fmt: skip
"""How each runs in a folder, and what of its result is always the same."""


def in_a_child(work: Callable[[], None], seconds: float = math.inf) -> tuple[int | None, float]:
    """Do the work in a fork of this process, killed after so many seconds of processor time.

    Returns:
        its exit code, None when it was killed, and the processor time it took.
    """
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
        if processor_seconds(child) > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, seconds
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1]), ended[2].ru_utime + ended[2].ru_stime


def processor_seconds(process: int) -> float:
    """What a process took so far, all its threads and what it started together."""
    here = Path(f"/proc/{process}")
    try:
        fields = (here / "stat").read_text().rpartition(")")[2].split()
        children = " ".join(each.read_text() for each in here.glob("task/*/children")).split()
    except OSError:  # it has just ended, and is counted with whoever waited for it
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(processor_seconds(int(e)) for e in children)


def trial(method: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill the method `kills` times, over as many runs as that takes."""
    draw, (run, kept) = random.Random(seed), METHODS[method]
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        code, seconds = in_a_child(lambda: run(whole, False))
        assert code == 0
        expected = kept(whole)
        killed = runs = same = 0
        while killed < kills:
            folder, resume = Path(temporary) / f"run{runs}", False
            while (code := in_a_child(lambda: run(folder, resume), draw.uniform(0, seconds))[0]) is None:  # noqa: B023
                killed, resume = killed + 1, True
                if killed % 5 == 0:  # at the latest now it may end
                    code, _ = in_a_child(lambda: run(folder, True))  # noqa: B023
                    break
            runs += 1
            same += code == 0 and kept(folder) == expected
            shutil.rmtree(folder)
    print(f"{method}: {killed} kills in {runs} runs of {seconds:.1f} s, {same} ended the same", flush=True)
    return {"kills": killed, "runs": runs, "same": same, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--only", choices=METHODS, help="this method")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "compress" / "experts")]
    methods = json.loads(RESULT.read_text())["methods"] if args.only and RESULT.exists() else {}
    for name in [args.only] if args.only else METHODS:
        methods[name] = trial(name, args.kills, 0)
        command = f"python benchmarks/killed.py --kills {args.kills}"
        write_json(RESULT, {"command": command, "machine": describe(), "versions": versions(), "methods": methods})


if __name__ == "__main__":
    main()
