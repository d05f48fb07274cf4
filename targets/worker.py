"""The other side of targets/apart.py: a process that loads one artefact and times it when it is told to.

It reads a job (one line of JSON) and then one empty line for each turn; it answers each with one line of JSON. Nothing
else is in this process: no other runtime whose threads would compete, no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from secateur.core import machine
from secateur.core.errors import SecateurError
from secateur.export import formats
from secateur.export.load import load_formats


def main() -> None:
    """Serve until the other side closes the pipe."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    job = json.loads(sys.stdin.readline())
    try:
        call = _load(job)
        _spread(call, job["threads"])
    except SecateurError as error:
        _answer(answers, error.as_json())
        return
    _answer(answers, {"loaded": True})
    for _ in sys.stdin:
        try:
            _answer(answers, {"ms": _turn(call)})
        except SecateurError as error:
            _answer(answers, error.as_json())


def _end_with_parent() -> None:
    """Be killed when the process that started this one ends, however it does: while stopped, this one would not see
    its pipe close. Linux only (`prctl`, PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _load(job: dict[str, Any]) -> Callable[[], object]:
    load_formats()
    if job["affinity"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["affinity"])
    with np.load(job["inputs"], allow_pickle=False) as stored:
        inputs = [stored[name] for name in stored.files]
    runtime = formats.get(job["format"]).open(Path(job["path"]), threads=job["threads"])
    return lambda: runtime.run(inputs)


def _spread(call: Callable[[], object], threads: int) -> None:
    """Bind the threads that share a call to one core each. Linux only.

    Threads that were stopped and woken on one core stay there for longer than a small model runs: about one process in
    ten would measure two threads that take turns.
    """
    tasks = Path("/proc/self/task")
    cores = machine.cores() if tasks.exists() else []
    if not 1 < threads <= len(cores):
        return
    call()
    own = threading.get_native_id()
    with contextlib.suppress(OSError):  # a thread that ends meanwhile, a kernel that keeps no times
        busy = {int(each.name): int((each / "schedstat").read_text().split()[0]) for each in tasks.iterdir()}
        others = sorted(busy.keys() - {own}, key=busy.__getitem__, reverse=True)
        for thread, core in zip([own, *others], cores[:threads], strict=False):
            os.sched_setaffinity(thread, {core})


def _turn(call: Callable[[], object]) -> float:
    """Milliseconds of one call, after one that brings back what the other processes pushed out of the caches."""
    call()
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _answer(answers: IO[str], document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
