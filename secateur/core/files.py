"""The one way to write files: aside, complete, then renamed, so that what stands at a path is always whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from secateur.core.errors import OutputError, SecateurError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed onto it when the block ends well and removed when it does not.

    Raises:
        OutputError: no space, no permission, or a folder in the way.
    """
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        temporary.touch(exist_ok=False)
    try:
        with clear_errors(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, swapped into its place when the block ends well.

    At every moment a whole old or a whole new folder is on disk, but where it is the folder that this process is in: a
    shell would lose it by the swap, so its content is exchanged. Of a link it is the folder behind it.

    Raises:
        OutputError: a folder above the one that this process is in.
    """
    named, path = path, path.resolve()
    with clear_errors(named):
        if path in Path.cwd().parents:
            raise OutputError(f"{named} is above the folder you are in", "run the command from another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        temporary.mkdir()
    try:
        with clear_errors(named):
            yield temporary
            with _alone(path.parent):
                _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hold(file: IO[Any], otherwise: SecateurError) -> None:
    """Lock an open file for this process until it is closed; one that dies frees it.

    Raises:
        SecateurError: the one given, when another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise otherwise from error


def write_json(path: Path, document: Any) -> None:
    """Write a document in canonical form: the same content gives the same bytes."""
    with writing(path) as temporary:
        temporary.write_bytes(canonical_json(document).encode())


def canonical_json(document: Any) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    """A name of its own in the same folder, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process, or thread, at a time in a folder; where a file system knows no locks, everybody."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    previous = path.with_name(f".{path.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    move: Callable[[Path, Path], object] = Path.rename
    if path == Path.cwd():
        previous.mkdir()
        move = _move_content
    move(path, previous)
    try:
        move(new, path)
    except OSError:
        move(previous, path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _move_content(source: Path, destination: Path) -> None:
    """All that is in one folder into another one, in place of what has the same name there."""
    for each in list(source.iterdir()):
        each.replace(destination / each.name)


@contextmanager
def clear_errors(path: Path, elsewhere: str = "choose another folder with -o") -> Iterator[None]:
    """Turn what the operating system refuses into one clear line, which ends with how to write elsewhere.

    Raises:
        OutputError
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"no space left to write {path}", "free some space; nothing was changed") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"not allowed to write {path}", elsewhere) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
            raise OutputError(f"cannot write {path}: {error.strerror}", elsewhere) from error
        raise
