"""The one progress display: bars with time left on stderr, lines where nothing can be drawn over (TERM=dumb), silent
where nobody looks.

for batch in track(loader, "fine-tuning"): ...
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True, markup=False, emoji=False)
LINE_EVERY_S = 10.0
"""On a dumb terminal."""
_live: Progress | None = None


@contextmanager
def bars() -> Iterator[Progress]:
    """The running display; nested uses share it."""
    global _live
    if _live is not None:
        yield _live
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g}/{task.total:g}"))
    dumb = console.is_dumb_terminal
    with (_Lines if dumb else Progress)(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=dumb or not console.is_terminal,
    ) as progress:
        _live = progress
        try:
            yield progress
        finally:
            _live = None


class _Lines(Progress):
    """A line now and then instead of bars."""

    _last: ClassVar = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **what: Any) -> None:
        super().update(task_id, **what)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now, task = time.monotonic(), self._tasks[task_id]
        if now - _Lines._last >= LINE_EVERY_S:
            _Lines._last = now
            left = TimeRemainingColumn().render(task).plain
            say(f"{task.description} {task.completed:g}/{task.total:g}, {left} left")


class Bar:
    """One bar: `advance()` it, `note()` what it is at."""

    def __init__(self, progress: Progress, task: TaskID, label: str) -> None:
        self._progress, self._task, self._label = progress, task, label

    def advance(self, steps: float = 1) -> None:
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._progress.update(self._task, description=f"{self._label} {text}")


@contextmanager
def bar(label: str, total: float) -> Iterator[Bar]:
    """A bar for work of a known size."""
    with bars() as progress:
        task = progress.add_task(label, total=total)
        try:
            yield Bar(progress, task, label)
        finally:
            progress.remove_task(task)


def track(items: Iterable[T], label: str) -> Iterator[T]:
    """Iterate with a bar; without a label, or a known length, just iterate."""
    try:
        total = len(items)  # type: ignore[arg-type]  # a DataLoader over an iterable dataset has none, though it says so
    except TypeError:
        label = ""
    if not label:
        yield from items
        return
    with bar(label, total) as progress:
        for item in items:
            yield item
            progress.advance()


def say(text: str) -> None:
    """One line for the user, on stderr."""
    console.print(text, highlight=False)
