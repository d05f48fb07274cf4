"""A session of the oracle: candidates of one group on top of a choice for the others, each judged on as few calibration
chunks, and for as few tasks, as its decision takes.

A task is settled, and run no more, once its mean loss is within its limit by so many standard errors; a candidate is
refused as soon as one task is above its limit by as many, or the non-negative losses seen so far alone are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secateur.compress.dataflow.groups import Keep
from secateur.compress.dataflow.mask import masked_state
from secateur.compress.dataflow.replay import Values
from secateur.compress.pagcp.prefix import Choice
from secateur.compress.pagcp.sampling import Estimate, Losses, Standing, estimate, student, values

if TYPE_CHECKING:
    from secateur.compress.pagcp.oracle import Oracle

Limits = Callable[[Losses], Losses]
"""Each task's largest loss, given the losses of the model as pruned so far."""

FEWEST_CHUNKS = 8
"""Chunks on which a candidate is judged at the least, so that their spread means something."""
NEXT_TO_NOTHING = 0.06
"""Share of a chunk's FLOPs below which candidates are run on all chunks: a few samples that lose much hide from a
part."""


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is accepted, each task's loss as far as it was looked at, and at how many chunks."""

    accepted: bool
    losses: Losses
    chunks: int


@dataclass
class _Candidate:
    """What is known of one: each task's losses on the first chunks, the tasks that are settled, what was computed."""

    choice: Choice
    seen: dict[str, list[float]]
    settled: set[str] = field(default_factory=set)
    fresh: dict[int, tuple[list[Values], tuple[str, ...]]] = field(default_factory=dict)

    @property
    def chunks(self) -> int:
        return max(map(len, self.seen.values()), default=0)


class Session:
    """Candidates are channels to keep. What one was seen to do is not run again."""

    def __init__(self, oracle: Oracle, keep: Keep, group: str, standing: Standing) -> None:
        self._oracle, self._group, self._standing = oracle, group, standing
        self._base, self._dirty = oracle.choice(keep), oracle.prefix.reach((group,))
        self._touched = [
            task
            for task, calls in oracle.prefix.needed.items()
            if any(needed & dirty for needed, dirty in zip(calls, self._dirty, strict=True))
        ]
        self._before: dict[str, list[float]] = {task: [] for task in self._touched}
        self._candidates: dict[tuple[int, ...], _Candidate] = {}
        self._total, self._confidence = len(oracle.batches), oracle.confidence
        if oracle.share(self._dirty) <= NEXT_TO_NOTHING and oracle.prefix.follows(self._base, self._touched):
            self._confidence = None

    def chunks(self, kept: Sequence[int]) -> int:
        """Chunks that a candidate was looked at on."""
        return self._candidates[tuple(kept)].chunks if tuple(kept) in self._candidates else 0

    def look(self, kept: Sequence[int]) -> None:
        """Run a candidate on its next chunk, for the tasks that are not settled."""
        candidate, oracle = self._candidate(kept), self._oracle
        tasks = [task for task in self._touched if task not in candidate.settled]
        number = min((len(candidate.seen[task]) for task in tasks), default=self._total)
        if number == self._total:
            return
        unseen = [task for task in tasks if len(self._before[task]) == number]
        if unseen:
            outputs = oracle.prefix.outputs(number, self._base, unseen)
            for task, loss in oracle.task_losses(number, outputs, unseen).items():
                self._before[task].append(loss)
        run = oracle.prefix.run(number, self._base, candidate.choice, self._dirty, tasks)
        if run.fresh is not None:
            candidate.fresh[number] = run.fresh, tuple(tasks)
        for task, loss in oracle.task_losses(number, run.outputs, tasks).items():
            candidate.seen[task].append(loss)
        oracle.spent.evaluations += 1

    def verdict(self, kept: Sequence[int], limits: Limits) -> Verdict | None:
        """What is clear by now; None while nothing is."""
        candidate, known = self._candidate(kept), values(self.standing())
        limit = limits(known)
        untouched = known.keys() - candidate.seen.keys()
        accepted: bool | None = all(known[task] <= limit[task] for task in untouched)
        for task in self._touched if accepted else ():
            if task not in candidate.settled:
                within = self._within(candidate, task, known, limits)
                if within:
                    candidate.settled.add(task)
                elif within is False:
                    accepted = False
                    break
                else:
                    accepted = None
        if accepted is None:
            return None
        if not accepted:
            self._drop(candidate)
        return Verdict(accepted, values(self.standing(kept)), candidate.chunks)

    def likely(self, kept: Sequence[int], limits: Limits) -> bool:
        """Whether what was seen so far speaks for a candidate."""
        candidate, known = self._candidate(kept), values(self.standing())
        limit = limits(known)
        return all(
            self._estimate(candidate, task).value <= limit[task]
            for task in self._touched
            if task not in candidate.settled and candidate.seen[task]
        )

    def judge(self, kept: Sequence[int], limits: Limits) -> Verdict:
        """Whether every task's mean loss stays within its limit; looks at no more chunks than that takes."""
        while (verdict := self.verdict(kept, limits)) is None:
            self.look(kept)
        return verdict

    def peek(self, kept: Sequence[int], chunks: int) -> Standing:
        """What the first chunks tell of a candidate."""
        while self._touched and self.chunks(kept) < min(chunks, self._total):
            self.look(kept)
        return self.standing(kept)

    def standing(self, kept: Sequence[int] | None = None) -> Standing:
        """What is known by now of a candidate's losses, or of the model as pruned so far."""
        current = {task: self._current(task) for task in self._standing}
        if kept is None:
            return current
        candidate = self._candidate(kept)
        return current | {
            task: self._estimate(candidate, task)._replace(variance=self._oracle.estimate(task, seen).variance)
            for task, seen in candidate.seen.items()
            if seen
        }

    def close(self, chosen: Sequence[int] | None) -> None:
        """The group is decided: what the chosen candidate computed is the cache now, all else is dropped."""
        if chosen is not None:
            candidate = self._candidate(chosen)
            for number, (fresh, tasks) in candidate.fresh.items():
                self._oracle.prefix.adopt(number, candidate.choice.keep, fresh, tasks)
            candidate.fresh.clear()
        for candidate in self._candidates.values():
            self._drop(candidate)

    def _drop(self, candidate: _Candidate) -> None:
        for fresh, _ in candidate.fresh.values():
            self._oracle.prefix.drop(fresh)
        candidate.fresh.clear()

    def _candidate(self, kept: Sequence[int]) -> _Candidate:
        key = tuple(kept)
        if key not in self._candidates:
            self._candidates[key] = _Candidate(self._choose(key), {task: [] for task in self._touched})
        return self._candidates[key]

    def _choose(self, kept: tuple[int, ...]) -> Choice:
        base, groups, change = self._base, self._oracle.groups, {self._group: list(kept)}
        keep = {**base.keep, **change}
        if not set(kept) <= set(base.keep.get(self._group, kept)):  # channels that were masked come back
            return Choice(keep, self._oracle.state(keep), groups.gone(keep))
        state = dict(base.state) | masked_state(groups.groups, change, base.state)
        return Choice(keep, state, groups.gone(keep))

    def _within(self, candidate: _Candidate, task: str, known: Losses, limits: Limits) -> bool | None:
        """Whether a task's loss is within its limit, once that is clear."""
        seen, limit = candidate.seen[task], limits(known)[task]
        if not all(map(math.isfinite, seen)) or (min(seen, default=0.0) >= 0 and sum(seen) > limit * self._total):
            return False
        if len(seen) == self._total:
            return self._estimate(candidate, task).value <= limit
        if self._confidence is None or len(seen) < FEWEST_CHUNKS:
            return None
        found, current = self._estimate(candidate, task), self._current(task)
        error = math.sqrt(found.variance + current.variance * _lean(task, known, limits) ** 2)
        margin = (limit - found.value) / max(error, 1e-12)
        needed = student(self._confidence, len(seen) - 1)
        return None if abs(margin) <= needed else margin > 0

    def _estimate(self, candidate: _Candidate, task: str) -> Estimate:
        return estimate(candidate.seen[task], self._before[task], self._current(task).value, self._total)

    def _current(self, task: str) -> Estimate:
        """A task's loss of the model as pruned so far: as it was handed in, or by more chunks than it came from."""
        handed, seen = self._standing[task], self._before.get(task, [])
        if handed.variance == 0 or len(seen) <= handed.chunks:
            return handed
        return self._oracle.estimate(task, seen)


def _lean(task: str, known: Losses, limits: Limits) -> float:
    """How far a candidate's margin is off when the loss of the model as pruned so far is off by one."""
    step = 1e-6 * max(abs(known[task]), 1e-6)
    return (limits({**known, task: known[task] + step})[task] - limits(known)[task]) / step - 1
