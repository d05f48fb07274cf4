"""Who measures what, and when: jobs wait in one queue for each key, and every device works on its key's queue.

    run_all(jobs, devices, measure, journal, leases)      # {job.name: outcome}

A device that is lost in the middle gives its job back, to be done elsewhere; one that is lost three times in a row is
left alone. An outcome counts when it is in the journal, where each job has one at most. Devices and jobs are taken in
random order (by a seed), so that whatever drifts over the time of a run falls on all models alike.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from secateur.core import machine
from secateur.core.errors import SecateurError, TargetUnavailableError
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases

LOSSES = 3
"""So often in a row a device may be lost before it is left alone."""
Outcome = dict[str, Any]


class Keyed(Protocol):
    """A device: its name, and the key that it shares with others of its kind."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Job:
    """Something to measure on one device of a key. `name` is the same for the same work, in a later run too."""

    name: str
    key: str
    work: Any = None


Measure = Callable[[Any, Job], Outcome]
"""`measure(device, job)` gives plain data. Raises TargetUnavailableError (DeviceLostError, mostly) when the device is
gone, another SecateurError when the job itself cannot be done."""


def run_all(
    jobs: Sequence[Job],
    devices: Sequence[Keyed],
    measure: Measure,
    journal: Journal,
    leases: Leases,
    *,
    priority: int = 0,
    seed: int = 0,
    told: Callable[[Job, Outcome], None] = lambda job, outcome: None,
) -> dict[str, Outcome]:
    """Do every job that the journal does not hold yet, on all devices at once.

    Args:
        priority: among all who use these devices, see `Leases.hold`.
        seed: of the order of jobs and devices.
        told: called for each outcome as it comes.

    Returns:
        An outcome for each job: what `measure` gave with `device` added, or `{"failed": reason}` from the job, or
        `{"unavailable": reason}` when no device of its key was left; only the last is not kept in the journal.
    """
    done = journal.outcomes()
    draw = random.Random(seed)  # noqa: S311 - an order, not a secret
    waiting = [job for job in jobs if job.name not in done]
    draw.shuffle(waiting)
    order = list(devices)
    draw.shuffle(order)
    queues = {job.key: _Queue([each for each in waiting if each.key == job.key], order) for job in waiting}
    workers = [
        threading.Thread(
            target=_work, args=(device, queues[device.key], measure, journal, leases, priority, told), daemon=True
        )
        for device in order
        if device.key in queues
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(timeout=0.2)  # so that Ctrl-C is heard
    crashed = [queue.crash for queue in queues.values() if queue.crash]
    if crashed:
        raise crashed[0]
    done = journal.outcomes()
    missing = {job.name: queues[job.key].missing() for job in waiting if job.name not in done}
    return {job.name: done.get(job.name) or missing[job.name] for job in jobs}


@dataclass
class _Queue:
    """Jobs of one key; those that were lost on a device go to another one, as long as there is another."""

    pending: list[Job]
    order: Sequence[Keyed]
    why: str = ""
    hint: str = ""
    crash: BaseException | None = None
    _tried: dict[str, set[str]] = field(default_factory=dict)
    _running: int = 0
    _alive: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        keys = {job.key for job in self.pending}
        self._alive = {device.name for device in self.order if device.key in keys}
        self.why = f"there is no device of the key {', '.join(keys)}"

    def take(self, device: str) -> Job | None:
        """The next job for a device; None when nothing is left to do, now or later."""
        with self._changed:
            while self.crash is None:
                for job in self.pending:
                    elsewhere = self._alive - self._tried.get(job.name, set())
                    if device in elsewhere or not elsewhere:
                        self.pending.remove(job)
                        self._running += 1
                        return job
                if not self.pending and not self._running:
                    return None
                self._changed.wait()  # a job that runs elsewhere may come back
            return None

    def finish(self) -> None:
        """A job has its outcome."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def missing(self) -> Outcome:
        """The outcome of a job for which no device was left."""
        return {"unavailable": self.why, "hint": self.hint}

    def give_back(self, job: Job, device: str, lost: TargetUnavailableError) -> None:
        """A job whose device was lost."""
        with self._changed:
            self._running -= 1
            self.why, self.hint = lost.message, lost.hint
            self._tried.setdefault(job.name, set()).add(device)
            self.pending.append(job)
            self._changed.notify_all()

    def leave(self, device: str, crash: BaseException | None = None) -> None:
        """A device that takes no more jobs."""
        with self._changed:
            self._alive.discard(device)
            self.crash = self.crash or crash
            self._changed.notify_all()


def _work(
    device: Keyed,
    queue: _Queue,
    measure: Measure,
    journal: Journal,
    leases: Leases,
    priority: int,
    told: Callable[[Job, Outcome], None],
) -> None:
    """What each device does, in a thread of its own."""
    losses, crash = 0, None
    try:
        while losses < LOSSES and (job := queue.take(device.name)) is not None:
            try:
                with leases.hold(device.name, machine.user(), priority):
                    outcome = {**measure(device, job), "device": device.name}
            except TargetUnavailableError as error:  # lost, or never reached
                losses += 1
                queue.give_back(job, device.name, error)
                continue
            except SecateurError as error:
                outcome = {"failed": error.message, "hint": error.hint, "device": device.name}
            losses = 0
            if journal.add(job.name, outcome):
                told(job, outcome)
            queue.finish()
    except BaseException as error:  # a bug must not leave the others waiting for ever
        crash = error
    finally:
        queue.leave(device.name, crash)
