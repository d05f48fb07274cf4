"""Staging: what is not finished stands in `<output>.state` beside the output, and takes its place when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from secateur.compress import ranks
from secateur.compress.journal import check_own
from secateur.core.bundle import Bundle
from secateur.core.errors import BudgetError, DataError, ModelError, OutputError
from secateur.core.files import clear_errors, hold, writing_folder

BUNDLE, LOCK = "bundle", "lock"
"""In the state folder of a run that goes on: what is not complete yet, and that somebody is at it."""


def state_folder(output: Path) -> Path:
    """Where work that ends in `output` keeps what is not finished."""
    return output.with_name(f"{output.name}.state")


@contextmanager
def reserved(output: Path, *, resume: bool, force: bool) -> Iterator[Path]:
    """The checked state folder of an output that one process at a time makes; what one that dies had is free.

    Raises:
        OutputError: another process does; or as `check_state`.
    """
    state = state_folder(output)
    if not ranks.leads():  # the first process reserves for all
        yield state
        return
    with clear_errors(state):
        new = [state, *(parent for parent in state.parents if not parent.exists())]
        state.mkdir(parents=True, exist_ok=True)
        file = (state / LOCK).open("w")
    busy = OutputError(f"another process is making {output}", "wait until it ends, or choose another output with -o")
    with file:
        hold(file, busy)
        if not _names(state / LOCK, file):  # whoever held it has ended and removed it since it was opened
            raise busy
        try:
            yield check_state(output, resume=resume, force=force)
        finally:
            (state / LOCK).unlink(missing_ok=True)
            for folder in new:
                with suppress(OSError):  # there is a result or something to resume from, or nothing at all any more
                    folder.rmdir()


def _names(path: Path, file: IO[str]) -> bool:
    """Whether a path leads to an open file."""
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def check_state(output: Path, *, resume: bool = False, force: bool = False) -> Path:
    """The state folder of an output. A stopped run may hold hours of work: it is neither overwritten nor resumed
    unasked.

    Raises:
        OutputError
    """
    state = state_folder(output)
    with clear_errors(state):
        taken = state.exists() and (not state.is_dir() or any(each.name != LOCK for each in state.iterdir()))
        check_own(state)
    if taken and not resume and not force:
        raise OutputError(
            f"{state} holds a run that was stopped", "continue it with --resume, or start again with --force"
        )
    return state


@contextmanager
def nothing_left(state: Path) -> Iterator[None]:
    """For work that is not resumed: what it staged goes when it fails."""
    try:
        yield
    except BaseException:
        shutil.rmtree(state / BUNDLE, ignore_errors=True)
        raise


@contextmanager
def dropped_if_hopeless(state: Path) -> Iterator[None]:
    """A mistake that would be found again in the same way leaves no state to resume from."""
    try:
        yield
    except (BudgetError, ModelError, DataError):
        shutil.rmtree(state, ignore_errors=True)
        raise


def finish(staged: Bundle, output: Path) -> Bundle:
    """Put a staged bundle in its place and forget its state."""
    with writing_folder(output) as folder:
        folder.rmdir()
        staged.path.rename(folder)
    shutil.rmtree(state_folder(output), ignore_errors=True)
    return Bundle.open(output)
