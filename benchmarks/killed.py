"""kill -9 at random moments of each method, and --resume: does the same model come of it?

    python benchmarks/killed.py --kills 20

Small workloads, so that a run takes seconds; each kill ends a process of its own at a moment drawn from the whole
processor time of a run, so that other work on the machine does not shift it. Between kills the run is resumed, so that
later ones hit what an earlier one left. At the end weights and channel maps must be those of a run that nobody stopped,
and every file of the bundle must have its hash.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import secateur as sc
from secateur.compress import experts, pagcp, slimmable
from secateur.compress.compressed import Compressed
from secateur.core.bundle import Bundle
from secateur.core.files import sha256, write_json
from secateur.core.machine import describe, versions

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "killed.json"
Method = Callable[..., Compressed]


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


def to_bundle(state: Path, resume: bool) -> None:
    """The whole command: pruning, export, measuring and report."""
    settings = pagcp.settings.Settings(rounds=1, epochs=2)
    sc.compress_to_bundle("toys:pair", state.with_name("bundle"), "flops<=60%", "90%", settings=settings, resume=resume)


METHODS: dict[str, Callable[[Path, bool], Any]] = {
    "pagcp": prune, "slimmable": slim, "experts": extract, "compress to a bundle": to_bundle,
}  # fmt: skip


def finish(method: str, folder: Path, resume: bool) -> None:
    """Run to the end and keep the weights."""
    result = METHODS[method](folder / "state", resume)
    if result is not None:
        result.save(folder / "bundle", force=True)


def weights(folder: Path) -> dict[str, str]:
    """Hash of every tensor file, and of the channel maps."""
    paths = sorted((folder / "bundle" / "points").rglob("*.*"))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


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
    """What a process took so far, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trial(method: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill the method `kills` times, over as many runs as that takes."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        code, seconds = in_a_child(lambda: finish(method, whole, False))
        assert code == 0
        expected = weights(whole)
        killed = runs = same = 0
        while killed < kills:
            folder, resume = Path(temporary) / f"run{runs}", False
            while (code := in_a_child(lambda: finish(method, folder, resume), draw.uniform(0, seconds))[0]) is None:  # noqa: B023
                killed, resume = killed + 1, True
                if killed % 5 == 0:  # at the latest now it may end
                    code, _ = in_a_child(lambda: finish(method, folder, True))  # noqa: B023
                    break
            runs += 1
            same += code == 0 and weights(folder) == expected and Bundle.open(folder / "bundle").verify() == []
            shutil.rmtree(folder)
    print(f"{method}: {killed} kills in {runs} runs of {seconds:.1f} s, {same} ended in the same bytes", flush=True)
    return {"kills": killed, "runs": runs, "same": same, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--only", choices=METHODS, help="this method")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "compress" / "experts")]
    methods: dict[str, Any] = {}
    for name in [args.only] if args.only else METHODS:
        methods[name] = trial(name, args.kills, 0)
        if not args.only:
            command = f"python benchmarks/killed.py --kills {args.kills}"
            write_json(RESULT, {"command": command, "machine": describe(), "versions": versions(), "methods": methods})


if __name__ == "__main__":
    main()
