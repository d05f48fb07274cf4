"""Leases: who may use a device now. One at a time, the highest priority first, then whoever asked first.

    with Leases(path).hold("phone-1", user="ada", priority=5):
        ...

All processes of a machine that use the same file see the same queue. A lease of a process that died is void at once:
each notes its process and when that process began, so that a number that was used again is not mistaken for it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from secateur.core.errors import DeviceLostError, OutputError
from secateur.core.files import clear_errors

_TABLE = """CREATE TABLE IF NOT EXISTS tickets (
    number INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, user TEXT NOT NULL, priority INTEGER NOT NULL,
    pid INTEGER NOT NULL, began TEXT NOT NULL, held INTEGER NOT NULL DEFAULT 0)"""
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Ticket:
    """Someone who holds a device or waits for it."""

    number: int
    device: str
    user: str
    priority: int
    held: bool


class Leases:
    """The queue of every device, in a file.

    Args:
        path: shared by everybody who uses these devices from this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with clear_errors(path, "set SECATEUR_CACHE to a folder that you may write to"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._change() as database:
            database.execute(_TABLE)

    @contextmanager
    def hold(
        self,
        device: str,
        user: str,
        priority: int = 0,
        *,
        patience_s: float = float("inf"),
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[None]:
        """Wait for one's turn, then hold the device until the block ends.

        Args:
            priority: higher goes first; who holds a device is never interrupted.
            patience_s: how long to wait.

        Raises:
            DeviceLostError: others kept it for longer than that.
        """
        number = self._draw(device, user, priority)
        try:
            waited = 0.0
            while not self._turn(number, device):
                if waited >= patience_s:
                    raise DeviceLostError(
                        f"{device} was not free for {patience_s:g} s", "ask for it with more --priority"
                    )
                sleep(LOOK_EVERY_S)
                waited += LOOK_EVERY_S
            yield
        finally:
            with self._change() as database:
                database.execute("DELETE FROM tickets WHERE number = ?", (number,))

    def tickets(self) -> list[Ticket]:
        """Who holds and who waits, in the order in which they get their turn."""
        with self._change() as database:
            _forget_the_dead(database)
            rows = database.execute(
                "SELECT number, device, user, priority, held FROM tickets "
                "ORDER BY device, held DESC, priority DESC, number"
            )
            return [Ticket(number, device, user, priority, bool(held)) for number, device, user, priority, held in rows]

    def _draw(self, device: str, user: str, priority: int) -> int:
        mine = (device, user, priority, os.getpid(), began(os.getpid()))
        with self._change() as database:
            drawn = database.execute(
                "INSERT INTO tickets (device, user, priority, pid, began) VALUES (?, ?, ?, ?, ?)", mine
            )
            return int(drawn.lastrowid or 0)

    def _turn(self, number: int, device: str) -> bool:
        """Whether it is this ticket's turn; then it holds the device."""
        with self._change() as database:
            _forget_the_dead(database)
            first = database.execute(
                "SELECT number FROM tickets WHERE device = ? ORDER BY held DESC, priority DESC, number LIMIT 1",
                (device,),
            ).fetchone()
            if first is None or first[0] != number:
                return False
            database.execute("UPDATE tickets SET held = 1 WHERE number = ?", (number,))
            return True

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction that nobody else's can come between."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = OFF")  # what a power cut loses, nobody holds any more
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot use the leases in {self.path}: {error}", "remove the file, or name another"
            ) from error


def _forget_the_dead(database: sqlite3.Connection) -> None:
    for pid, start in database.execute("SELECT DISTINCT pid, began FROM tickets").fetchall():
        if not start or began(pid) != start:
            database.execute("DELETE FROM tickets WHERE pid = ? AND began = ?", (pid, start))


def began(pid: int) -> str:
    """When a process began, as text that no other process of that number has; empty when there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
