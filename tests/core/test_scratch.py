"""Scratch folders go with their process, also when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from secateur.core.scratch import PREFIX, Scratch

HOLD = """
from secateur.core.scratch import Scratch
import sys
with Scratch() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def started() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def aged(folder: Path) -> Path:
    old = time.time() - 3600
    os.utime(folder, (old, old))
    return folder


def test_a_folder_goes_with_its_block_and_with_its_object() -> None:
    with Scratch() as folder:
        assert Path(folder).name.startswith(PREFIX)
        Path(folder, "file").touch()
    assert not Path(folder).exists()
    kept = Scratch()
    assert Path(kept.name).is_dir()
    kept.cleanup()
    kept.cleanup()
    assert not Path(kept.name).exists()


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    killed, left = started()
    running, used = started()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    young = tmp_path / f"{PREFIX}young"
    foreign = tmp_path / "other"
    link = tmp_path / f"{PREFIX}link"
    foreign.mkdir()
    link.symlink_to(foreign)
    aged(left), aged(used), aged(foreign), young.mkdir()
    with Scratch() as mine:
        assert not left.exists()
        assert all(each.exists() for each in (used, young, foreign, link, Path(mine)))
    running.communicate("")
    assert not used.exists()


@pytest.mark.parametrize("name", ["secateur-demo", "secateur-scratch-mine", "secateur-scratch-report1.old"])
def test_a_folder_of_the_user_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    own = aged(tmp_path / name)
    with Scratch():
        assert own.is_dir()
