"""The command line as tests use it: in this process for what it says, in a process of its own for what it survives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import QUICK, Outcome, Secateur

from secateur.cli.app import app
from secateur.cli.run import run
from secateur.core.bundle import Bundle

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def secateur(capsys: pytest.CaptureFixture[str]) -> Secateur:
    """`secateur(*args)` in this process."""

    def call(*args: object) -> Outcome:
        capsys.readouterr()
        code = run(app, [str(arg) for arg in args])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def process() -> Secateur:
    """`process(*args, **environment)`: the same in a process of its own."""

    def call(*args: object, before: Callable[[], None] | None = None, **environment: str) -> Outcome:
        command = [sys.executable, "-m", "secateur", *map(str, args)]
        variables = os.environ | {"PYTHONPATH": str(HERE)} | environment

        def prepare() -> None:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # a shell's background jobs, and so a test run's, may ignore it
            if before is not None:
                before()

        done = subprocess.run(command, capture_output=True, text=True, env=variables, preexec_fn=prepare)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the workload `pair`, as compress writes it. Not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "pair"
    assert run(app, ["compress", "toys:pair", "--budget", "flops<=60%", *QUICK, "-o", str(path)]) == 0
    return path


@pytest.fixture
def bundle(finished: Path, folder: Path) -> Bundle:
    """A copy that a test may spoil."""
    return Bundle.open(shutil.copytree(finished, folder / "bundle"))
