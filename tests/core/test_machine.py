"""Which cores there are, in the order in which threads should take them."""

from __future__ import annotations

import pytest

from secateur.core import machine

SIBLINGS = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 6: "6"}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two physical cores of two threads each and one of one, of which this process may use all."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(SIBLINGS), raising=False)
    monkeypatch.setattr(machine, "_siblings", SIBLINGS.__getitem__)


@pytest.mark.usefixtures("processor")
def test_threads_get_physical_cores_before_they_share_one() -> None:
    assert machine.cores() == [0, 2, 6, 1, 3]
    assert machine.describe()["cores"] == 5


def test_where_the_system_tells_nothing_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert machine.cores() == [0, 1, 2]


def test_a_core_of_which_nothing_is_known_stands_alone() -> None:
    assert machine._siblings(10**6) == str(10**6)
