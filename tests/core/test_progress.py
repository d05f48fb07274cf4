"""Progress is for people at a terminal: silent elsewhere, on stderr, and never in the way of the work."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from secateur.core import progress
from secateur.core.progress import bar, track


def test_silent_where_nobody_looks(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False))
    with bar("pruning", 3) as steps:
        assert list(track([1, 2, 3], "batches")) == [1, 2, 3]
        steps.note("layer1")
        steps.advance()
    assert capfd.readouterr() == ("", "")


def test_messages_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    progress.say("saved to runs/mine")
    out, err = capfd.readouterr()
    assert out == ""
    assert "saved to runs/mine" in err


def test_a_terminal_shows_label_count_and_what_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120))
    with progress.bars() as shown, bar("pruning", 3) as steps:
        steps.note("layer1")
        steps.advance(2)
        shown.refresh()
    assert "pruning layer1" in screen.getvalue()
    assert "2/3" in screen.getvalue()


@pytest.mark.parametrize(("every", "lines"), [(0.0, 4), (3600.0, 0)])
def test_a_dumb_terminal_gets_a_line_now_and_then(every: float, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No escape codes, no bars one below the other, no empty lines; but how long it takes."""
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "console", Console(file=screen, force_terminal=True, width=120, _environ={"TERM": "dumb"})
    )
    monkeypatch.setattr(progress, "LINE_EVERY_S", every)
    with progress.bars(), bar("pruning", 3) as steps:
        steps.note("layer1")
        for _ in range(3):
            steps.advance()
    assert len(screen.getvalue().splitlines()) == lines
    assert "\x1b" not in screen.getvalue()
    if lines:
        assert re.fullmatch(r"pruning layer1 2/3, \d:\d\d:\d\d left", screen.getvalue().splitlines()[2])


def test_an_iteration_that_is_left_early_takes_its_bar_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), force_terminal=True))
    with progress.bars() as shown:
        for _ in (batches := track([1, 2, 3], "batches")):
            assert len(shown.tasks) == 1
            break
        batches.close()  # type: ignore[attr-defined]
        assert shown.tasks == []


def test_what_has_no_length_is_iterated_all_the_same() -> None:
    assert list(track(iter([1, 2]), "batches")) == [1, 2]
    assert list(track([1, 2], "")) == [1, 2]


def test_an_error_under_a_bar_leaves_the_display_usable() -> None:
    with pytest.raises(ValueError, match="bad batch"), bar("pruning", 1):
        raise ValueError("bad batch")
    with bar("again", 1) as steps:
        steps.advance()
