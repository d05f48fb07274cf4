"""run_all: whatever is lost on the way, every job ends with one outcome, which is never counted twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.core.errors import DeviceLostError, ExportError
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.reach import Local
from secateur.targets.farm.schedule import LOSSES, Job, run_all


@dataclass(frozen=True)
class Board:
    name: str
    key: str = "board"


def jobs(count: int, key: str = "board") -> list[Job]:
    return [Job(f"{key}-{index}", key, index) for index in range(count)]


class Bench:
    """A journal and leases in a folder, and a record of what was run where."""

    def __init__(self, folder: Path) -> None:
        self.journal, self.leases = Journal(folder / "journal"), Leases(folder / "leases")
        self.ran: list[tuple[str, str]] = []

    def go(self, work: list[Job], boards: list[Board], measure: Any, **how: Any) -> dict[str, Any]:
        def noted(board: Board, job: Job) -> dict[str, Any]:
            self.ran.append((board.name, job.name))
            return measure(board, job)  # type: ignore[no-any-return]

        return run_all(work, boards, noted, self.journal, self.leases, **how)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def works(board: Board, job: Job) -> dict[str, Any]:
    return {"value": job.work}


def test_every_job_is_done_once_and_devices_share_the_work(bench: Bench) -> None:
    meeting = threading.Barrier(3)

    def together(board: Board, job: Job) -> dict[str, Any]:
        if job.work < 3:
            meeting.wait(timeout=20)  # three jobs run at the same time, or this fails
        return works(board, job)

    work = [Job(f"j{index}", f"key-{index % 3}", index) for index in range(12)]
    found = bench.go(work, [Board(f"b{index}", f"key-{index}") for index in range(3)], together, seed=3)
    assert {name: outcome["value"] for name, outcome in found.items()} == {job.name: job.work for job in work}
    assert Counter(job for _, job in bench.ran) == Counter(job.name for job in work)


def test_a_lost_device_gives_its_job_to_another_one(bench: Bench) -> None:
    def measure(board: Board, job: Job) -> dict[str, Any]:
        if board.name == "bad":
            raise DeviceLostError("bad is lost: cable")
        return works(board, job)

    found = bench.go(jobs(6), [Board("bad"), Board("good")], measure)
    assert all(outcome == {"value": index, "device": "good"} for index, outcome in enumerate(found.values()))
    tries = Counter(bench.ran)
    assert max(tries.values()) == 1, "no device tries a job again that another one can do"
    assert sum(count for (board, _), count in tries.items() if board == "bad") <= LOSSES


def test_a_device_that_comes_back_goes_on(bench: Bench) -> None:
    failures = iter([True, True, False, True, False])

    def measure(board: Board, job: Job) -> dict[str, Any]:
        if next(failures, False):
            raise DeviceLostError("gone for a moment")
        return works(board, job)

    found = bench.go(jobs(4), [Board("only")], measure)
    assert [outcome.get("value") for outcome in found.values()] == [0, 1, 2, 3]


def test_when_all_are_lost_the_rest_says_why_and_other_keys_complete(bench: Bench) -> None:
    def measure(board: Board, job: Job) -> dict[str, Any]:
        if board.key == "board":
            raise DeviceLostError("board is lost: cable")
        return works(board, job)

    work = jobs(2) + jobs(2, "phone") + jobs(1, "tablet")
    found = bench.go(work, [Board("a"), Board("b"), Board("p", "phone")], measure)
    assert [found[f"phone-{index}"]["value"] for index in range(2)] == [0, 1]
    assert all("cable" in found[f"board-{index}"]["unavailable"] for index in range(2))
    assert "tablet" in found["tablet-0"]["unavailable"]
    assert set(bench.journal.outcomes()) == {"phone-0", "phone-1"}, "what was not measured is tried again next time"


def test_a_job_that_cannot_be_done_is_not_the_devices_fault(bench: Bench) -> None:
    def measure(board: Board, job: Job) -> dict[str, Any]:
        if job.work == 1:
            raise ExportError("no such operator", "use another")
        return works(board, job)

    found = bench.go(jobs(3), [Board("a")], measure)
    assert found["board-1"] == {"failed": "no such operator", "hint": "use another", "device": "a"}
    assert found["board-2"]["value"] == 2
    assert len(bench.ran) == 3


def test_a_bug_ends_the_run_instead_of_hanging_it(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.go(jobs(3), [Board("a"), Board("b")], lambda board, job: {"value": 1 / (job.work - 1)})


def test_the_seed_is_the_order(bench: Bench, tmp_path: Path) -> None:
    orders = []
    for index, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(index)
        folder.mkdir()
        other = Bench(folder)
        other.go(jobs(10), [Board("a")], works, seed=seed)
        orders.append([job for _, job in other.ran])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_a_second_run_does_only_what_is_missing(bench: Bench) -> None:
    first = bench.go(jobs(3), [Board("a")], works)
    again = bench.go(jobs(5), [Board("a")], works)
    assert {name: again[name] for name in first} == first
    assert Counter(job for _, job in bench.ran) == Counter(job.name for job in jobs(5))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_pattern_of_losses_loses_or_doubles_a_result(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """As long as one device works, every job has its value, once."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    losses = data.draw(st.dictionaries(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), st.integers(1, 3)))
    lock, told = threading.Lock(), []

    def measure(board: Board, job: Job) -> dict[str, Any]:
        with lock:
            left = losses.get((board.name, job.work), 0)
            losses[board.name, job.work] = left - 1
        if left > 0:
            raise DeviceLostError("gone")
        return works(board, job)

    boards = [Board("a"), Board("b"), Board("sound")]
    found = bench.go(jobs(6), boards, measure, told=lambda job, outcome: told.append(job.name))
    assert [outcome["value"] for outcome in found.values()] == list(range(6))
    assert sorted(told) == sorted(found)


def test_an_outcome_is_noted_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    results = []
    threads = [threading.Thread(target=lambda i=i: results.append(journal.add("job", {"by": i}))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    assert len(journal.outcomes()) == 1


def test_runners_that_are_killed_on_purpose(bench: Bench, tmp_path: Path) -> None:
    """Real programs on loopback devices; on one of them the shell is shot in the middle of every second run."""
    script = "echo started >> {log}; {kill} echo result {job}"

    def measure(board: Board, job: Job) -> dict[str, Any]:
        shoot = board.name == "bad" or (board.name == "shaky" and job.work % 2)
        kill = "kill -9 $$;" if shoot else ""
        said = Local(board.name).run_script(script.format(log=tmp_path / "log", kill=kill, job=job.work), timeout_s=20)
        return {"value": int(said.split()[1])}

    found = bench.go(jobs(8), [Board("bad"), Board("shaky"), Board("sound")], measure)
    assert [outcome["value"] for outcome in found.values()] == list(range(8))
    assert len((tmp_path / "log").read_text().splitlines()) == len(bench.ran) >= 8
    assert not {"bad"} & {outcome["device"] for outcome in found.values()}


FARM = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace as Board
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.schedule import Job, run_all
folder = Path(sys.argv[1])
def measure(board, job):
    with open(folder / "log", "a") as log:
        log.write(job.name + "\\n")
    time.sleep(0.1)
    return {"value": job.work}
work = [Job(f"j{i}", "board", i) for i in range(12)]
boards = [Board(name=f"b{i}", key="board") for i in range(2)]
found = run_all(work, boards, measure, Journal(folder / "journal"), Leases(folder / "leases"))
assert [each["value"] for each in found.values()] == list(range(12))
"""


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    run = [sys.executable, "-c", FARM, str(tmp_path)]
    first = subprocess.Popen(run)
    journal = Journal(tmp_path / "journal")
    end = time.monotonic() + 30
    while len(journal.outcomes()) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = journal.outcomes()
    assert 3 <= len(kept) < 12
    assert subprocess.run(run, check=False).returncode == 0
    assert {name: journal.outcomes()[name] for name in kept} == kept
    ran = Counter((tmp_path / "log").read_text().split())
    assert sum(ran.values()) <= 12 + 2, "at most what was running on the two boards is done again"
    assert all(ran[name] == 1 for name in kept)
