"""Leases: one holder at a time, priority before arrival, and nothing left behind by the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from secateur.core.errors import DeviceLostError
from secateur.targets.farm.lease import Leases, began

HOLDER = """
import sys, time
from pathlib import Path
from secateur.targets.farm.lease import Leases
with Leases(Path(sys.argv[1])).hold("phone", "other", 9):
    print("held", flush=True)
    time.sleep(600)
"""
TURNS = """
import os, sys, time
from pathlib import Path
from secateur.targets.farm.lease import Leases
leases = Leases(Path(sys.argv[1]))
for _ in range(5):
    with leases.hold("phone", "x"):
        os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))  # fails when another holds it
        time.sleep(0.01)
        os.remove(sys.argv[2])
"""


def wait_until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_priority_goes_before_arrival_and_arrival_decides_among_equals(tmp_path: Path) -> None:
    leases, order = Leases(tmp_path / "leases"), []

    def want(user: str, priority: int) -> None:
        with leases.hold("phone", user, priority):
            order.append(user)

    threads = []
    with leases.hold("phone", "first", 0):
        for user, priority in (("low", 0), ("urgent", 5), ("later", 0), ("urgent too", 5)):
            threads.append(threading.Thread(target=want, args=(user, priority)))
            threads[-1].start()
            wait_until(lambda user=user: user in [each.user for each in leases.tickets()])
        assert [each.user for each in leases.tickets()] == ["first", "urgent", "urgent too", "low", "later"]
        assert [each.held for each in leases.tickets()] == [True, False, False, False, False]
    for thread in threads:
        thread.join()
    assert order == ["urgent", "urgent too", "low", "later"]
    assert leases.tickets() == []


def test_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    with leases.hold("phone", "x"), leases.hold("board", "x", patience_s=0):
        assert {each.device for each in leases.tickets()} == {"phone", "board"}


def test_patience_ends_and_leaves_no_ticket(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    with leases.hold("phone", "x"):
        with pytest.raises(DeviceLostError, match="not free"), leases.hold("phone", "y", patience_s=0):
            pass
        assert [each.user for each in leases.tickets()] == ["x"]


def test_a_lease_ends_with_its_block_also_by_an_error(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    with pytest.raises(KeyError), leases.hold("phone", "x"):
        raise KeyError
    assert leases.tickets() == []


def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    leases = Leases(path)
    with pytest.raises(DeviceLostError), leases.hold("phone", "me", patience_s=0):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with leases.hold("phone", "me", patience_s=0):
        pass


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TURNS, str(tmp_path / "leases"), str(tmp_path / "in use")]
    Leases(tmp_path / "leases")
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_a_process_is_known_by_when_it_began() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert began(child.pid)
    assert began(child.pid) != began(os.getpid()) or began(child.pid) == "alive"
    child.kill()
    child.wait()
    assert began(child.pid) == ""
