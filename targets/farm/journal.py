"""The journal of a farm's run: each job's outcome, written once, and safe from whatever kills the process afterwards.

journal = Journal(Path("farm.json.journal"))
journal.add("job", {"median": 3.1})       # True; the second time False, and the first outcome stays
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from secateur.core.errors import OutputError
from secateur.core.files import clear_errors

_TABLE = "CREATE TABLE IF NOT EXISTS outcomes (job TEXT PRIMARY KEY, document TEXT NOT NULL)"


class Journal:
    """Outcomes by job, in a file that several threads and processes may add to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with clear_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.execute(_TABLE)

    def add(self, job: str, document: dict[str, Any]) -> bool:
        """Note an outcome; False when the job has one already, which then stays as it is."""
        text = json.dumps(document, allow_nan=False)
        with self._open() as database:
            return database.execute("INSERT OR IGNORE INTO outcomes VALUES (?, ?)", (job, text)).rowcount == 1

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What was noted so far."""
        with self._open() as database:
            return {job: json.loads(text) for job, text in database.execute("SELECT job, document FROM outcomes")}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                yield database
        except (sqlite3.Error, ValueError) as error:
            raise OutputError(f"cannot use the journal {self.path}: {error}", "remove it and start again") from error
