"""Scratch: a temporary folder that goes with its process, also when the process is killed.

    with Scratch() as folder: ...

A process holds a lock on its folders. What one that was killed left behind is free, and the next one removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

PREFIX = "secateur-scratch-"
_OURS = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")
"""What `tempfile` makes of it; nothing of a user's is called so."""
YOUNG = 60.0
"""Seconds in which a folder may not be locked yet."""


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder; `name` is its path, and what a `with` gives."""

    def __init__(self) -> None:
        super().__init__(prefix=PREFIX)
        descriptor = os.open(self.name, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, descriptor)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_orphans(Path(self.name).parent)

    def cleanup(self) -> None:
        super().cleanup()
        self._release()


def _remove_orphans(folder: Path) -> None:
    """Remove our own folders whose process is gone."""
    for left in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = left.lstat()
            old = time.time() - found.st_mtime > YOUNG
            if _OURS.fullmatch(left.name) and left.is_dir() and found.st_uid == os.getuid() and old:
                _remove_if_free(left)


def _remove_if_free(folder: Path) -> None:
    """Raises OSError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
