"""Measuring artefacts in processes of their own, in turns: thread pools of two runtimes in one process fight.

    with Process("tvm", Path("model.so"), inputs, threads=2) as one, Process("onnx", Path("model.onnx"), inputs) as two:
        samples = sample({"tvm": one.turn, "onnx": two.turn}, own_time=True)

Whoever does not have its turn is stopped (SIGSTOP), so that threads that wait by spinning take nothing from others.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from secateur.core import errors
from secateur.core.errors import ExportError, SecateurError
from secateur.core.scratch import Scratch
from secateur.export.runtime import Array
from secateur.profiles.timing import sample

PATIENCE_S = 300.0
"""A process that gives no answer for so long is given up."""
_POOLS = ("OMP_NUM_THREADS", "TVM_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_KINDS: dict[str, type[SecateurError]] = {
    each.kind: each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SecateurError)
}


@dataclass(frozen=True)
class Artefact:
    """A file in one of the formats of `export/`, to be measured."""

    format: str
    path: Path


def sample_apart(
    artefacts: Mapping[str, Artefact],
    inputs: Mapping[str, Sequence[Array]],
    *,
    threads: int = 1,
    affinity: Sequence[int] = (),
    **how: Any,
) -> dict[str, list[float]]:
    """Times of each artefact in milliseconds, each in a process of its own; the i-th samples were taken in one round.

    Args:
        inputs: of each artefact, in the model's order.
        threads: that a runtime may use.
        affinity: numbers of the cores that the processes are bound to; any when empty.
        how: see `secateur.profiles.timing.sample`.

    Raises:
        ExportError, TargetUnavailableError, MissingExtraError: an artefact that does not load or run.
    """
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(Process(each.format, each.path, inputs[name], threads, affinity))
            for name, each in artefacts.items()
        }
        return sample({name: process.turn for name, process in processes.items()}, own_time=True, **how)


class Process:
    """An artefact, loaded in a process of its own; `turn` runs it and gives its latency in milliseconds."""

    def __init__(
        self, format_: str, path: Path, inputs: Sequence[Array], threads: int = 1, affinity: Sequence[int] = ()
    ) -> None:
        self._path = path
        with Scratch() as folder:
            stored = Path(folder) / "inputs.npz"
            arrays: dict[str, Any] = {f"input_{index:03}": value for index, value in enumerate(inputs)}
            np.savez(stored, allow_pickle=False, **arrays)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "secateur.targets.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                env={**os.environ, **dict.fromkeys(_POOLS, str(threads))},
            )
            job = {
                "format": format_,
                "path": str(path),
                "inputs": str(stored),
                "threads": threads,
                "affinity": list(affinity),
            }
            try:
                self._ask(json.dumps(job))
            except BaseException:
                self.close()
                raise
        self._pause(True)

    def turn(self) -> float:
        """Latency of one call in milliseconds, as the process itself measured it."""
        self._pause(False)
        answer = self._ask("")
        self._pause(True)
        return float(answer["ms"])

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._child.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a line that the dead process never read
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pause(self, stop: bool) -> None:
        if hasattr(signal, "SIGSTOP") and self._child.poll() is None:
            os.kill(self._child.pid, signal.SIGSTOP if stop else signal.SIGCONT)

    def _ask(self, line: str) -> dict[str, Any]:
        sending, answers = self._child.stdin, self._child.stdout
        assert sending is not None
        assert answers is not None
        try:
            sending.write(line + "\n")
            sending.flush()
            text = answers.readline() if self._answers_in_time(answers) else ""
        except BrokenPipeError:
            text = ""
        if not text:
            raise ExportError(f"{self._path} {self._end()}", "run it in a process of your own to see why")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise _as_raised(**answer["error"])
        return answer

    def _answers_in_time(self, answers: Any) -> bool:
        return os.name != "posix" or bool(select.select([answers], [], [], PATIENCE_S)[0])

    def _end(self) -> str:
        try:
            code = self._child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return f"gave no answer for {PATIENCE_S:.0f} s"
        return f"ended its process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def _as_raised(kind: str, message: str, hint: str) -> SecateurError:
    """The error of the other process, of its own type."""
    error = _KINDS.get(kind, SecateurError)
    raised = error.__new__(error)
    SecateurError.__init__(raised, message, hint)
    return raised
