"""The one progress display: bars with time left on stderr, silent where nobody looks.

for batch in track(loader, "fine-tuning"): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True, markup=False, emoji=False)
_live: Progress | None = None


@contextmanager
def bars() -> Iterator[Progress]:
    """The running display; nested uses share it."""
    global _live
    if _live is not None:
        yield _live
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g}/{task.total:g}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        _live = progress
        try:
            yield progress
        finally:
            _live = None


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
    if not label or not isinstance(items, Sized):
        yield from items
        return
    with bar(label, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()


def say(text: str) -> None:
    """One line for the user, on stderr."""
    console.print(text, highlight=False)
